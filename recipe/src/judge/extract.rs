//! Which option an answer means.
//!
//! As VLMEvalKit's `can_infer`: a lone letter, else the words of one option; what is neither is no answer and counts
//! as wrong. Ours are the cue phrases, the equal text before the contained one, and that an `A` before a word in small
//! letters is an article.

/// The letter of an option, counted from 0.
pub fn letter(at: usize) -> char {
    char::from(b'A'.saturating_add(at.min(25) as u8))
}

/// The option that an answer means, counted from 0.
pub fn option(given: &str, options: &[String]) -> Option<usize> {
    let given = given.trim();
    leading(given, options.len())
        .or_else(|| cued(given, options.len()))
        .or_else(|| lone(given, options.len()))
        .or_else(|| by_words(given, options))
}

fn index(letter: char, count: usize) -> Option<usize> {
    let at = (letter as usize).checked_sub('A' as usize)?;
    (at < count.min(26)).then_some(at)
}

/// `B`, `(B) …`, `B. …`, `b)`.
fn leading(given: &str, count: usize) -> Option<usize> {
    let bare = given.trim_start_matches(['(', '[', '*']);
    let mut letters = bare.chars();
    let first = letters.next()?;
    let next = letters.next();
    match next {
        None => index(first.to_ascii_uppercase(), count),
        Some(')' | ']') => index(first.to_ascii_uppercase(), count),
        Some('.' | ':' | ',' | '*' | '\n') => index(first, count),
        _ => None,
    }
}

/// `the answer is (B)`, `Answer: B`, `option B`.
fn cued(given: &str, count: usize) -> Option<usize> {
    let small = given.to_ascii_lowercase();
    ["answer is", "answer:", "best option:", "option", "choice"].into_iter().find_map(|cue| {
        let at = small.find(cue)? + cue.len();
        let rest = given[at..].trim_start_matches(|c: char| c.is_whitespace() || "(['\"*:".contains(c));
        let mut letters = rest.chars();
        let first = letters.next()?;
        let ends = letters.next().is_none_or(|c| !c.is_alphanumeric() && (c != ' ' || first != 'A'));
        index(first, count).filter(|_| ends)
    })
}

/// The only letter of an option among the answer's words.
fn lone(given: &str, count: usize) -> Option<usize> {
    let words: Vec<&str> =
        given.split(|c: char| c.is_whitespace() || ".()[],:;!*#{}".contains(c)).filter(|w| !w.is_empty()).collect();
    let mut found: Vec<usize> = Vec::new();
    for (place, word) in words.iter().enumerate() {
        let mut letters = word.chars();
        let (Some(first), None) = (letters.next(), letters.next()) else { continue };
        let next = words.get(place + 1).filter(|word| !["or", "and"].contains(word));
        let article = first == 'A' && next.is_some_and(|word| word.starts_with(char::is_lowercase));
        if let Some(at) = index(first, count).filter(|at| !article && !found.contains(at)) {
            found.push(at);
        }
    }
    if let [only] = found[..] { Some(only) } else { None }
}

/// The only option whose words the answer is, or holds.
fn by_words(given: &str, options: &[String]) -> Option<usize> {
    let tidy = |text: &str| text.trim().trim_end_matches(['.', '!']).to_lowercase();
    let given = tidy(given);
    let only = |found: Vec<usize>| if let [only] = found[..] { Some(only) } else { None };
    let which = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
        let options = options.iter().map(|option| tidy(option)).enumerate();
        options.filter(|(_, option)| !option.is_empty() && test(option)).map(|(at, _)| at).collect()
    };
    let total: usize = options.iter().map(String::len).sum();
    only(which(&|option| option == given))
        .or_else(|| if given.len() > 2 * total { None } else { only(which(&|option| holds(&given, option))) })
}

/// Whether a text holds words, not as part of longer ones.
fn holds(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + words.len()..].chars().next();
        [before, after].into_iter().flatten().all(|c| !c.is_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(given: &str) -> Option<usize> {
        let options = ["red", "dark red", "a ball", "10", "1"].map(String::from);
        option(given, &options)
    }

    #[test]
    fn letters() {
        for given in ["B", "b", "(B)", "B.", "(B) dark red", "B) x", "b)", "**B**", "B\nred", "[B]"] {
            assert_eq!(of(given), Some(1), "{given}");
        }
        for given in ["The answer is B.", "Answer: (B)", "I would take option B here", "Best option:(B) x", "It is B"] {
            assert_eq!(of(given), Some(1), "{given}");
        }
        assert_eq!(of("The answer is A"), Some(0));
        assert_eq!(of("A"), Some(0));
    }

    #[test]
    fn words() {
        assert_eq!(of("Dark red."), Some(1));
        assert_eq!(of("red"), Some(0));
        assert_eq!(of("a ball"), Some(2));
        assert_eq!(of("A ball"), Some(2));
        assert_eq!(of("It is a ball"), Some(2));
        assert_eq!(of("10"), Some(3));
        assert_eq!(of("there are 10"), Some(3));
    }

    #[test]
    fn no_answer() {
        for given in ["", "  ", "A or B", "dark red and a ball", "F", "Z", "scored", "none of them", "A man walks"] {
            assert_eq!(of(given), None, "{given}");
        }
        let long = format!("a ball {}", "and so on ".repeat(9));
        assert_eq!(of(&long), None);
    }
}

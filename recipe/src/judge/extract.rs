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
    leading(given, options)
        .or_else(|| cued(given, options.len()))
        .or_else(|| lone(given, options.len()))
        .or_else(|| by_words(given, options))
}

fn index(letter: char, count: usize) -> Option<usize> {
    let at = (letter as usize).checked_sub('A' as usize)?;
    (at < count.min(26)).then_some(at)
}

/// `B`, `(B) …`, `B. …`, `b)`, but not the first of several, as in `A, B` and `A. red B. green`.
fn leading(given: &str, options: &[String]) -> Option<usize> {
    let count = options.len();
    let bare = given.trim_start_matches(['(', '[', '*']);
    let mut letters = bare.chars();
    let first = letters.next()?;
    let next = letters.next();
    match next {
        None => index(first.to_ascii_uppercase(), count),
        Some(')' | ']') => index(first.to_ascii_uppercase(), count),
        Some(mark @ ('.' | ':' | ',' | '*' | '\n')) => index(first, count).filter(|at| {
            // Letters within the option's own words are none of a list: `A. Vitamin C`.
            let rest = after(letters.as_str(), options.get(*at).map_or("", |words| words.trim()));
            !listed(first, mark, rest, count)
        }),
        _ => None,
    }
}

/// What follows the words that a text begins with, marks and case aside; all of it if it does not.
fn after<'a>(text: &'a str, words: &str) -> &'a str {
    let mut rest = text.trim_start_matches(|c: char| c.is_whitespace() || ".:,*".contains(c)).chars();
    let same = |word: char| rest.next().is_some_and(|c| c.to_lowercase().eq(word.to_lowercase()));
    if words.chars().all(same) { rest.as_str() } else { text }
}

/// Whether the letter of another option goes on a list: next to the first one, or with the same mark behind it.
fn listed(first: char, mark: char, rest: &str, count: usize) -> bool {
    rest.char_indices().any(|(at, c)| {
        let (before, behind) = (&rest[..at], &rest[at + c.len_utf8()..]);
        let alone = !before.ends_with(char::is_alphanumeric) && !behind.starts_with(char::is_alphanumeric);
        if !alone || c == first || index(c, count).is_none() {
            return false;
        }
        let joins = |word: &str| ["and", "or"].contains(&word);
        let next = before.split(|c: char| !c.is_alphanumeric()).all(|word| word.is_empty() || joins(word));
        let ends = behind.trim().is_empty()
            || behind.trim_start().starts_with(['.', ':', ',', ';', '*', ')', ']', '/', '&'])
            || behind.split_whitespace().next().is_some_and(joins);
        let again = behind.strip_prefix(mark).is_some_and(|more| !more.trim().is_empty());
        next && ends || again
    })
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
    let ends = |c: char| c.is_whitespace() || ".()[],:;!*#{}".contains(c);
    let words = given.split_inclusive(ends).map(|piece| (piece.trim_end_matches(ends), piece));
    let words: Vec<(&str, &str)> = words.filter(|(word, _)| !word.is_empty()).collect();
    let mut found: Vec<usize> = Vec::new();
    for (place, (word, piece)) in words.iter().enumerate() {
        let mut letters = word.chars();
        let (Some(first), None) = (letters.next(), letters.next()) else { continue };
        let next = words.get(place + 1).filter(|(word, _)| !["or", "and"].contains(word));
        // `A ball`, but not `A. ball`.
        let article = first == 'A'
            && piece.ends_with(char::is_whitespace)
            && next.is_some_and(|(word, _)| word.starts_with(char::is_lowercase));
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
        for given in [
            "A. red",
            "A, because the ball is red",
            "A: a dog",
            "A, not B.",
            "A. The others, B and C, are wrong.",
            "A. B is not red",
            "A. red (B would be dark)",
            "A\nB is wrong",
            "**A** red",
            "A. red B. dark red C. a ball\nThe answer is A",
        ] {
            assert_eq!(of(given), Some(0), "{given}");
        }
        // Options whose words hold the letters of others.
        let vitamins = ["Vitamin C", "Vitamin B", "vitamin D, A, C"].map(String::from);
        for (given, want) in
            [("A. Vitamin C", 0), ("**A**: vitamin C.", 0), ("B. Vitamin B", 1), ("C, Vitamin D, A, C", 2)]
        {
            assert_eq!(option(given, &vitamins), Some(want), "{given}");
        }
        assert_eq!(option("A. Vitamin C B. Vitamin B", &vitamins), None);
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
        // A list of options is no choice.
        for given in [
            "A, B, C",
            "A, B",
            "A,B",
            "A, B and C",
            "A, or B",
            "A\nB\nC",
            "A: B",
            "**A**, **B**",
            "A. red B. dark red",
            "A. red B. dark red C. a ball",
            "A. red\nB. dark red\nC. a ball",
            "A: red, B: dark red",
            "**A** red **B** dark red",
        ] {
            assert_eq!(of(given), None, "{given}");
        }
        let long = format!("a ball {}", "and so on ".repeat(9));
        assert_eq!(of(&long), None);
    }
}

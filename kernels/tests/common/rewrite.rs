//! CUDA C++ as CubeCL writes it, made into a program that g++ compiles against `tests/cuda/emulate.hpp`.

/// The program of a kernel. Its lines are numbered as the text's.
pub fn program(text: &str) -> Result<String, String> {
    let name = entry(text)?;
    let lines: Vec<&str> = text.lines().map(|l| if l.starts_with("#include") { "" } else { l }).collect();
    let body = assembly(&shared(&lines.join("\n"))?)?;
    Ok(format!(
        r#"#include "emulate.hpp"
namespace kernel {{
#line 1 "kernel.cu"
{body}
}}
static void entry(void** arguments) {{ emulated::call(kernel::{name}, arguments); }}
extern void (*const emulated_entry)(void**);
void (*const emulated_entry)(void**) = entry;
extern const unsigned emulated_parameters;
const unsigned emulated_parameters = emulated::parameters(kernel::{name});
extern "C" char __executable_start, end;
extern char *const emulated_image_start, *const emulated_image_end;
char *const emulated_image_start = &__executable_start, *const emulated_image_end = &end;
"#
    ))
}

/// Whether the kernel takes the lengths of its buffers.
pub fn takes_lengths(text: &str) -> bool {
    text.contains("info_st const") || text.contains("info_st info")
}

fn entry(text: &str) -> Result<&str, String> {
    let from = text.find("__global__").ok_or("no kernel in the text")?;
    let bounds = text[from..].find("__launch_bounds__").ok_or("a kernel without launch bounds")? + from;
    let after = text[bounds..].find(')').ok_or("launch bounds without an end")? + bounds + 1;
    let open = text[after..].find('(').ok_or("a kernel without parameters")? + after;
    let name = text[after..open].split_whitespace().next_back().ok_or("a kernel without a name")?;
    Ok(name)
}

/// The block's memory: the text declares one block of bytes and casts parts of it.
fn shared(text: &str) -> Result<String, String> {
    let Some(from) = text.find("extern __shared__") else { return Ok(text.into()) };
    let end = text[from..].find(';').ok_or("a declaration without an end")? + from;
    let declared = &text[from..end];
    let name = declared.trim_end_matches("[]").split_whitespace().next_back().ok_or("shared memory without a name")?;
    let mut out = text[..from].to_string();
    let mut rest = &text[end + 1..];
    let mark = format!(">(&{name}[");
    while let Some(at) = rest.find(&mark) {
        let cast = rest[..at].rfind("reinterpret_cast<").ok_or("shared memory used without a cast")?;
        let kind = rest[cast + "reinterpret_cast<".len()..at].trim();
        let kind = kind.strip_suffix('*').ok_or_else(|| format!("shared memory cast to {kind}"))?;
        let offset = &rest[at + mark.len()..];
        let close = offset.find("])").ok_or("an offset without an end")?;
        out += &format!("{}emulated::claim<{}>({})", &rest[..cast], kind.trim(), &offset[..close]);
        rest = &offset[close + 2..];
    }
    out += rest;
    // A use that is no such cast would go unchecked.
    if out.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == name) {
        return Err(format!("{name} is used in a way that is not known"));
    }
    Ok(out)
}

/// Inline PTX becomes a call that is handed the text and the addresses of its operands.
fn assembly(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = find_word(rest, "asm") {
        out += &rest[..at];
        let open = rest[at..].find('(').ok_or("asm without operands")? + at;
        let (sections, after) = sections(&rest[open + 1..])?;
        out += &call(&sections)?;
        rest = &rest[open + 1 + after..];
    }
    Ok(out + rest)
}

fn find_word(text: &str, word: &str) -> Option<usize> {
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    text.match_indices(word)
        .map(|(i, _)| i)
        .find(|&i| edge(text[..i].chars().next_back()) && edge(text[i + word.len()..].chars().next()))
}

/// What stands between the colons of an `asm`, each as its items; and where the `asm` ends.
fn sections(text: &str) -> Result<(Vec<Vec<String>>, usize), String> {
    let mut all = vec![vec![String::new()]];
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    let bytes: Vec<(usize, char)> = text.char_indices().collect();
    let mut i = 0;
    while i < bytes.len() {
        let (at, c) = bytes[i];
        let section = all.last_mut().ok_or("no section")?;
        if quoted {
            quoted = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
        } else {
            match c {
                '"' => quoted = true,
                '(' | '[' | '{' => depth += 1,
                ')' if depth == 0 => return Ok((all, at + 1)),
                ')' | ']' | '}' => depth -= 1,
                ':' if depth == 0 => {
                    all.push(vec![String::new()]);
                    i += 1;
                    continue;
                }
                ',' if depth == 0 => {
                    section.push(String::new());
                    i += 1;
                    continue;
                }
                _ => {}
            }
        }
        if let Some(item) = section.last_mut() {
            item.push(c);
        }
        i += 1;
    }
    Err("asm without an end".into())
}

fn call(sections: &[Vec<String>]) -> Result<String, String> {
    let operands = |i: usize| -> Result<Vec<&str>, String> {
        let items = sections.get(i).map(Vec::as_slice).unwrap_or_default();
        items.iter().map(|x| x.trim()).filter(|x| !x.is_empty()).map(value).collect()
    };
    let text = sections[0].join(",").replace('\n', " ");
    let (outs, ins) = (operands(1)?, operands(2)?);
    let copies: String = ins.iter().enumerate().map(|(i, x)| format!("auto emulated_in{i} = {x}; ")).collect();
    let places = outs
        .iter()
        .map(|x| format!("{{(void*)&({x}), sizeof({x})}}"))
        .chain((0..ins.len()).map(|i| format!("{{(void*)&emulated_in{i}, sizeof(emulated_in{i})}}")))
        .collect::<Vec<_>>()
        .join(", ");
    let (n, all) = (outs.len(), outs.len() + ins.len());
    if all == 0 {
        return Ok(format!("emulated::ptx(__LINE__, {}, nullptr, 0, 0)", text.trim()));
    }
    Ok(format!(
        "[&] {{ {copies}const emulated::Operand emulated_all[] = {{{places}}}; \
         emulated::ptx(__LINE__, {}, emulated_all, {n}, {all}); }}()",
        text.trim()
    ))
}

/// `"=f"(x)` is x.
fn value(operand: &str) -> Result<&str, String> {
    let open = operand.find('(').ok_or_else(|| format!("the operand {operand} has no value"))?;
    operand[open..].strip_prefix('(').and_then(|x| x.strip_suffix(')')).ok_or_else(|| format!("the operand {operand}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_ptx_becomes_a_call() {
        let text = r#"asm volatile("mma {%0, %1}, %2;" : "=f"(r.i_0), "=r"(r.i_1) : "l"(f(a, b)) : "memory");"#;
        assert_eq!(
            assembly(text).unwrap(),
            "[&] { auto emulated_in0 = f(a, b); const emulated::Operand emulated_all[] = {{(void*)&(r.i_0), sizeof(r.i_0)}, \
             {(void*)&(r.i_1), sizeof(r.i_1)}, {(void*)&emulated_in0, sizeof(emulated_in0)}}; \
             emulated::ptx(__LINE__, \"mma {%0, %1}, %2;\", emulated_all, 2, 3); }();"
        );
        assert_eq!(assembly("asm(\"a;\" :  :  );").unwrap(), "emulated::ptx(__LINE__, \"a;\", nullptr, 0, 0);");
    }

    #[test]
    fn shared_memory_becomes_claims() {
        let text = "extern __shared__ __align__(16) char m[];\narray<float, 8>* a = reinterpret_cast<array<float, 8>*>(&m[32]);";
        assert_eq!(shared(text).unwrap(), "\narray<float, 8>* a = emulated::claim<array<float, 8>>(32);");
        let error = shared("extern __shared__ __align__(16) char m[];\nf(m);").unwrap_err();
        assert!(error.contains("m is used"), "{error}");
    }
}

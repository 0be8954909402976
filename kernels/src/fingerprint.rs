//! What tells one version of a kernel from another: a hash of its own file and of the files that it builds on.
//!
//! Comments do not count. What was measured with one fingerprint says nothing of a kernel with another.

use std::collections::BTreeSet;

/// THE LIST, and beside it the text of each kernel's file, in the same order.
macro_rules! listed {
    ($(#[$doc:meta])* pub const LIST: &[&dyn Launch] = &[$(&$module:ident::$kernel:ident),* $(,)?];) => {
        $(#[$doc])*
        pub const LIST: &[&dyn Launch] = &[$(&$module::$kernel),*];

        /// Module and text of each kernel of the list.
        const SOURCES: &[(&str, &str)] =
            &[$((stringify!($module), include_str!(concat!(stringify!($module), ".rs")))),*];
    };
}
pub(crate) use listed;

macro_rules! shared {
    ($($module:ident)*) => {
        &[$((stringify!($module), include_str!(concat!(stringify!($module), ".rs")))),*]
    };
}

/// Files that kernels build on.
const SHARED: &[(&str, &str)] = shared![
    attention attention_carry attention_fragments attention_keys attention_merge attention_panels attention_parts attention_sight
    attention_softmax attention_spans attention_tiles attention_warpgroups bind body cross_entropy einsum einsum_copies einsum_split
    einsum_tiles grid loops nest packed vector warpgroups words
];

/// Files that decide nothing about how fast a kernel is.
#[cfg(test)]
const APART: &[&str] = &["chain", "fingerprint", "horizontal", "key", "lib", "prepared", "source", "stages", "tally"];

/// The fingerprint of the kernel of that name; nothing for a kernel that is not in the list.
pub fn fingerprint(name: &str) -> Option<u64> {
    let at = crate::LIST.iter().position(|k| k.name() == name)?;
    let all: Vec<(&str, &str)> = crate::SOURCES.iter().chain(SHARED).copied().collect();
    Some(hash(crate::SOURCES[at].0, &all))
}

/// The hash of a module and of every module that it names, and they name.
fn hash(module: &str, all: &[(&str, &str)]) -> u64 {
    let mut found = BTreeSet::from([module]);
    let mut open = vec![module];
    while let Some(next) = open.pop() {
        let text = all.iter().find(|(m, _)| *m == next).map_or("", |(_, t)| t);
        let named = |m: &&str| code(text).any(|l| names(l, m));
        open.extend(all.iter().map(|(m, _)| *m).filter(named).filter(|m| found.insert(m)));
    }
    let texts = found.iter().filter_map(|m| all.iter().find(|(n, _)| n == m));
    let lines = texts.flat_map(|(_, t)| code(t));
    // FNV-1a.
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for byte in lines.flat_map(|l| l.trim().bytes().chain([b'\n'])) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    h
}

/// Whether a line names a module of this crate.
fn names(line: &str, module: &str) -> bool {
    line.match_indices("crate::").any(|(i, p)| {
        let rest = &line[i + p.len()..];
        rest.strip_prefix(module).is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

/// Lines that are no comment.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|l| !l.trim_start().starts_with("//"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_fingerprint_follows_what_a_kernel_builds_on_and_nothing_else() {
        let of = |fast: &str, tiles: &str, other: &str| {
            let all = [("fast", fast), ("tiles", tiles), ("other", other)];
            (hash("fast", &all), hash("other", &all))
        };
        let fast = "//! A doc.\nuse crate::tiles::Tile;\nfn f() {}";
        let before = of(fast, "const T: u32 = 4;", "fn g() {}");
        assert_eq!(
            before,
            of("//! Another doc.\nuse crate::tiles::Tile;\nfn f() {}", "const T: u32 = 4;", "fn g() {}")
        );
        let (first, second) = of(fast, "const T: u32 = 8;", "fn g() {}");
        assert!(first != before.0 && second == before.1);
        assert!(names("use crate::tiles::{Tile};", "tiles") && !names("use crate::tiles_wide::Tile;", "tiles"));
    }

    #[test]
    fn every_file_is_a_kernel_or_shared_or_apart() {
        let known: Vec<&str> =
            crate::SOURCES.iter().chain(SHARED).map(|(m, _)| *m).chain(APART.iter().copied()).collect();
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let module = name.trim_end_matches(".rs");
            assert!(known.contains(&module), "{name} is no kernel: name it in SHARED or in APART");
        }
        let mut all: Vec<u64> = crate::LIST.iter().map(|k| fingerprint(k.name()).unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), crate::LIST.len(), "two kernels have one fingerprint");
    }
}

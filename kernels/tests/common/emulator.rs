//! CUDA without a GPU: the text of a kernel is compiled by g++ against `tests/cuda`, and run on the host.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use omchat_kernels::{Dialect, Horizontal, Parameter, Prepared};

use super::rewrite;

/// Optimized a little, with a call for each load and store, and another for each index and each alignment.
const KERNEL: [&str; 9] = [
    "-std=c++17",
    "-Og",
    "-g1",
    "-w",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fsanitize=thread,alignment,bounds-strict",
    "-ftrivial-auto-var-init=pattern",
];

/// The sources of the machine, with those of the headers.
const SOURCES: [(&str, &str); 13] = [
    ("emulate.hpp", include_str!("../cuda/emulate.hpp")),
    ("halves.hpp", include_str!("../cuda/halves.hpp")),
    ("wmma.hpp", include_str!("../cuda/wmma.hpp")),
    ("emulator.hpp", include_str!("../cuda/emulator.hpp")),
    ("fibres.cpp", include_str!("../cuda/fibres.cpp")),
    ("memory.cpp", include_str!("../cuda/memory.cpp")),
    ("warp.cpp", include_str!("../cuda/warp.cpp")),
    ("ptx.hpp", include_str!("../cuda/ptx.hpp")),
    ("async.cpp", include_str!("../cuda/async.cpp")),
    ("wgmma.cpp", include_str!("../cuda/wgmma.cpp")),
    ("ptx.cpp", include_str!("../cuda/ptx.cpp")),
    ("tensor.cpp", include_str!("../cuda/tensor.cpp")),
    ("main.cpp", include_str!("../cuda/main.cpp")),
];

/// Bytes that one launch reads or writes, and how many of them an element has.
#[derive(Clone, Debug, Hash)]
pub struct Bytes {
    pub data: Vec<u8>,
    pub element: u32,
}

/// A compiler, the compiled machine, and what was made so far.
pub struct Emulator {
    folder: PathBuf,
    locks: Mutex<HashMap<u64, &'static OnceLock<Result<PathBuf, String>>>>,
}

/// A number for what is hashed, the same in every run.
pub fn hash(of: impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    of.hash(&mut h);
    h.finish()
}

fn command(program: impl AsRef<std::ffi::OsStr>, args: &[&str], folder: &Path) -> Result<(), String> {
    let program = program.as_ref();
    let out = Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", program.to_string_lossy()))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).trim().to_string();
    Err(if said.is_empty() { format!("{}: {}", program.to_string_lossy(), out.status) } else { said })
}

/// A name that no other thread of any process has.
fn me() -> String {
    format!("{}-{:?}", std::process::id(), std::thread::current().id()).replace(['(', ')'], "")
}

/// Makes a file that may be there already, whoever else makes it too.
fn once(path: &Path, make: impl FnOnce(&str) -> Result<(), String>) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
    let draft = path.with_file_name(format!("{}-{name}", me()));
    make(&draft.to_string_lossy())?;
    std::fs::rename(&draft, path).map_err(|e| format!("{}: {e}", path.display()))
}

impl Emulator {
    /// The emulator of this process. The reason where there is none: no g++.
    pub fn present() -> Result<&'static Emulator, String> {
        static ONE: OnceLock<Result<Emulator, String>> = OnceLock::new();
        ONE.get_or_init(Emulator::new).as_ref().map_err(Clone::clone)
    }

    fn new() -> Result<Emulator, String> {
        let version = Command::new("g++").arg("--version").output().map_err(|e| format!("no g++: {e}"))?;
        if cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))) {
            return Err("fibres are written for x86-64 and arm64".into());
        }
        let key = hash((SOURCES, version.stdout, KERNEL));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-{key:016x}"));
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        for (name, text) in SOURCES {
            once(&folder.join(name), |draft| std::fs::write(draft, text).map_err(|e| e.to_string()))?;
        }
        let parts: Vec<&str> = SOURCES.iter().map(|s| s.0).filter(|n| n.ends_with(".cpp")).collect();
        once(&folder.join("libemulator.so"), |draft| {
            let args = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", draft];
            command("g++", &[&args[..], &parts].concat(), &folder)
        })?;
        once(&folder.join("emulate.hpp.gch"), |draft| {
            command("g++", &[&KERNEL[..], &["-x", "c++-header", "emulate.hpp", "-o", draft]].concat(), &folder)
        })?;
        Ok(Emulator { folder, locks: Mutex::default() })
    }

    /// The program of a text, compiled once: kept from run to run by what it is made from.
    fn compile(&self, text: &str) -> Result<PathBuf, String> {
        let key = hash(text);
        let slot: &'static OnceLock<_> = {
            let mut locks = self.locks.lock().map_err(|e| e.to_string())?;
            locks.entry(key).or_insert_with(|| Box::leak(Box::default()))
        };
        slot.get_or_init(|| {
            let path = self.folder.join(format!("{key:016x}"));
            once(&path, |draft| {
                let source = format!("{draft}.cpp");
                std::fs::write(&source, rewrite::program(text)?).map_err(|e| e.to_string())?;
                let link = ["-fno-sanitize=all", "libemulator.so", "-Wl,-rpath,$ORIGIN", "-o", draft];
                let object = format!("{draft}.o");
                command("g++", &[&KERNEL[..], &["-I.", "-c", &source, "-o", &object]].concat(), &self.folder)?;
                command("g++", &[&[object.as_str()], &link[..]].concat(), &self.folder)?;
                for file in [source, object] {
                    std::fs::remove_file(file).map_err(|e| e.to_string())?;
                }
                Ok(())
            })?;
            Ok(path)
        })
        .clone()
    }

    /// Runs a prepared kernel for that architecture.
    ///
    /// Errors: no text; a text that does not compile; a race, a deadlock, an access outside of a buffer.
    pub fn run(
        &self,
        prepared: &Prepared,
        sm: u32,
        operands: &[Bytes],
        results: &[Bytes],
    ) -> Result<Vec<Vec<u8>>, String> {
        let mut out = results.to_vec();
        // Scratch memory holds anything at first: here floats that are none.
        let mut scratch = Bytes { data: vec![0xff; prepared.scratch() * 4], element: 4 };
        for step in prepared.steps() {
            let parameters = step.parameters();
            let of = parameters.iter().map(|p| match p {
                Parameter::Meta => {
                    let data = prepared.meta().iter().flat_map(|w| w.to_le_bytes()).collect();
                    (0, Bytes { data, element: 4 })
                }
                Parameter::Operand(i) => (1, operands[*i].clone()),
                Parameter::Scratch { written } => (1 + u32::from(*written), scratch.clone()),
                Parameter::Result(i) => (2, out[*i].clone()),
            });
            let of: Vec<(u32, Bytes)> = of.collect();
            let mut read = self.run_text(&step.source(Dialect::CudaCpp { sm })?, step.grid(), &of)?.into_iter();
            for (p, (kind, _)) in parameters.iter().zip(&of) {
                match (p, (*kind == 2).then(|| read.next()).flatten()) {
                    (Parameter::Result(i), Some(data)) => out[*i].data = data,
                    (Parameter::Scratch { .. }, Some(data)) => scratch.data = data,
                    _ => {}
                }
            }
        }
        Ok(out.into_iter().map(|b| b.data).collect())
    }

    /// Runs launches side by side, each with its operands and results.
    ///
    /// Errors: as [`Emulator::run`].
    pub fn run_beside(
        &self,
        joint: &Horizontal,
        sm: u32,
        launches: &[(&Prepared, Vec<Bytes>, Vec<Bytes>)],
    ) -> Result<Vec<Vec<Vec<u8>>>, String> {
        let mut buffers = vec![];
        for (prepared, operands, results) in launches {
            for p in prepared.steps().iter().flat_map(|s| s.parameters()) {
                let data = prepared.meta().iter().flat_map(|w| w.to_le_bytes()).collect();
                buffers.push(match p {
                    Parameter::Meta => (0, Bytes { data, element: 4 }),
                    Parameter::Operand(i) => (1, operands[i].clone()),
                    Parameter::Result(i) => (2, results[i].clone()),
                    Parameter::Scratch { .. } => return Err("what takes scratch memory stands alone".into()),
                });
            }
        }
        let prepared: Vec<&Prepared> = launches.iter().map(|l| l.0).collect();
        let text = joint.source(&prepared, Dialect::CudaCpp { sm })?;
        let mut read = self.run_text(&text, joint.grid(), &buffers)?.into_iter();
        let one = |(.., results): &(&Prepared, Vec<Bytes>, Vec<Bytes>)| read.by_ref().take(results.len()).collect();
        Ok(launches.iter().map(one).collect())
    }

    /// Runs a text over buffers in the order of its parameters: 0 the metadata, 1 an operand, 2 a result.
    pub fn run_text(
        &self,
        text: &str,
        grid: ([u32; 3], u32),
        buffers: &[(u32, Bytes)],
    ) -> Result<Vec<Vec<u8>>, String> {
        let program = self.compile(text)?;
        let mut all = buffers.to_vec();
        if rewrite::takes_lengths(text) {
            let lengths = buffers.iter().flat_map(|(_, b)| (b.data.len() as u32 / b.element).to_le_bytes()).collect();
            all.push((3, Bytes { data: lengths, element: 4 }));
        }
        let mut input: Vec<u8> = Vec::new();
        let word = |input: &mut Vec<u8>, w: u32| input.extend(w.to_le_bytes());
        for w in [grid.0[0], grid.0[1], grid.0[2], grid.1, all.len() as u32] {
            word(&mut input, w);
        }
        for (kind, b) in &all {
            for w in [*kind, b.element, b.data.len() as u32] {
                word(&mut input, w);
            }
            input.extend(&b.data);
        }
        let name = me();
        let (from, to) = (self.folder.join(format!("{name}.in")), self.folder.join(format!("{name}.out")));
        std::fs::write(&from, input).map_err(|e| e.to_string())?;
        let done = command(&program, &[&from.to_string_lossy(), &to.to_string_lossy()], &self.folder);
        if let Err(said) = done {
            let source = self.folder.join(format!("{name}.cu"));
            std::fs::write(&source, text).map_err(|e| e.to_string())?;
            let again = format!("{} {} /dev/null", program.display(), from.display());
            return Err(format!(
                "{}\n{} holds the text; again: {again}",
                explain(&program, text, &said),
                source.display()
            ));
        }
        std::fs::remove_file(&from).map_err(|e| e.to_string())?;
        let read = std::fs::read(&to).map_err(|e| e.to_string())?;
        std::fs::remove_file(&to).map_err(|e| e.to_string())?;
        let mut rest = read.as_slice();
        buffers
            .iter()
            .filter(|b| b.0 == 2)
            .map(|(_, b)| {
                let (one, more) = rest.split_at_checked(b.data.len()).ok_or("a result is missing")?;
                rest = more;
                Ok(one.to_vec())
            })
            .collect()
    }
}

/// The machine's message, with the line of the text that it is about.
fn explain(program: &Path, text: &str, said: &str) -> String {
    let Some((line, rest)) = said.strip_prefix("line ").and_then(|s| s.split_once(": ")) else { return said.into() };
    let number = line.strip_prefix('-').map_or_else(|| line.parse().ok(), |address| find(program, address));
    let Some(number) = number.filter(|n: &usize| *n > 0) else { return rest.into() };
    let around = text.lines().enumerate().skip(number.saturating_sub(3)).take(4);
    let quoted: String = around.map(|(i, l)| format!("\n  {} | {l}", i + 1)).collect();
    format!("{rest}\nat line {number} of the text:{quoted}")
}

/// The line of an address, by the tool that comes with g++.
fn find(program: &Path, address: &str) -> Option<usize> {
    let address = address.parse::<u64>().ok()?.checked_sub(1)?;
    let out =
        Command::new("addr2line").args(["-e", &program.to_string_lossy(), &format!("{address:#x}")]).output().ok()?;
    String::from_utf8_lossy(&out.stdout).split(':').nth(1)?.split_whitespace().next()?.parse().ok()
}

//! Tables of what was measured: text that a person can review, one line an entry, sorted.
//!
//! A table belongs to a device, its driver and a release of CubeCL, which its first lines name. An entry belongs to the
//! fingerprint of its kernel's source: where that changed, the entry is stale and selection passes it over.

use crate::device::Device;
use crate::{CUBECL, Error};
use omchat_codegen::{Family, Pick, Tuned};
use omchat_kernels::fingerprint;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What the first line of each table says to whoever opens it.
const TITLE: &str = "# Measured by `omchat tune`: class kernel [schedule] source=… us=… untuned_us=… of=…";

/// A measured entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The kernel and the schedule.
    pub pick: Pick,
    /// Fingerprint of the kernel's source when it was measured.
    pub source: u64,
    /// Microseconds that it took, a median.
    pub us: f64,
    /// Microseconds of what is taken without a table, measured in the same rounds.
    pub untuned_us: f64,
    /// The program that the work was from, as `mini/decode`.
    pub of: String,
}

impl Entry {
    /// Why the entry does not hold for this build, if it does not.
    pub fn stale(&self) -> Option<String> {
        match fingerprint(&self.pick.kernel) {
            None => Some(format!("there is no kernel {}", self.pick.kernel)),
            Some(now) if now != self.source => {
                Some(format!("the source of {} is {now:016x} now, not {:016x}", self.pick.kernel, self.source))
            }
            Some(_) => None,
        }
    }
}

/// A device's table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The device's name and adapter.
    pub device: String,
    /// What compiles for it, as the device says.
    pub driver: String,
    /// The release of CubeCL.
    pub cubecl: String,
    /// Entries by class.
    pub entries: BTreeMap<String, Entry>,
}

impl Table {
    /// An empty table for a device as it is now.
    pub fn of(device: &Device) -> Table {
        let facts = device.facts();
        let fact = |name: &str| facts.iter().find(|(n, _)| *n == name).map_or("unknown", |(_, v)| v).trim().to_string();
        let cores = device.target().cores;
        Table {
            device: format!("{}, {}, {cores} cores", device.name(), fact("adapter")),
            driver: [fact("compiled for")].into_iter().chain(nvidia(device)).collect::<Vec<_>>().join(", "),
            cubecl: CUBECL.into(),
            entries: BTreeMap::new(),
        }
    }

    /// What of a device differs from what the table was made on; nothing where it is the same.
    pub fn foreign(&self, device: &Device) -> Option<String> {
        let now = Table::of(device);
        [
            ("device", &self.device, &now.device),
            ("driver", &self.driver, &now.driver),
            ("cubecl", &self.cubecl, &now.cubecl),
        ]
        .iter()
        .find(|(_, was, is)| was != is)
        .map(|(what, was, is)| format!("it is for the {what} `{was}`, here it is `{is}`"))
    }

    /// Entries that do not hold for this build, by class, and why.
    pub fn stale(&self) -> Vec<(&str, String)> {
        self.entries.iter().filter_map(|(class, e)| Some((class.as_str(), e.stale()?))).collect()
    }

    /// What selection takes: entries that are not stale.
    pub fn tuned(&self) -> Tuned {
        let mut out = Tuned::default();
        for (class, e) in self.entries.iter().filter(|(_, e)| e.stale().is_none()) {
            out.put(class, e.pick.clone());
        }
        out
    }

    /// The table in a file.
    ///
    /// Errors: `Table` with the file and the line that cannot be read, and the mend.
    pub fn read(path: &Path) -> Result<Table, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| fault(path, 0, format!("cannot be read: {e}")))?;
        Table::parse(&text).map_err(|(line, what)| fault(path, line, what))
    }

    /// The table that a text holds.
    ///
    /// Errors: the line and what is wrong with it.
    pub fn parse(text: &str) -> Result<Table, (usize, String)> {
        let mut table = Table::default();
        for (at, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l.trim())) {
            let rest = |word: &str| line.strip_prefix(word).and_then(|r| r.strip_prefix(' ')).map(str::to_string);
            if line.is_empty() || line.starts_with('#') {
                continue;
            } else if let Some(name) = rest("device") {
                table.device = name;
            } else if let Some(name) = rest("driver") {
                table.driver = name;
            } else if let Some(name) = rest("cubecl") {
                table.cubecl = name;
            } else {
                let (class, found) = entry(line).map_err(|what| (at, what))?;
                if table.entries.insert(class.clone(), found).is_some() {
                    return Err((at, format!("the class `{class}` is there twice")));
                }
            }
        }
        let head = [("device", &table.device), ("driver", &table.driver), ("cubecl", &table.cubecl)];
        match head.iter().find(|(_, v)| v.is_empty()) {
            Some((name, _)) => Err((1, format!("no line says the {name}"))),
            None => Ok(table),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{TITLE}\ndevice {}\ndriver {}\ncubecl {}", self.device, self.driver, self.cubecl)?;
        for (class, e) in &self.entries {
            let Entry { pick, source, us, untuned_us, of } = e;
            writeln!(
                f,
                "{class} {} [{}] source={source:016x} us={us:.1} untuned_us={untuned_us:.1} of={of}",
                pick.kernel, pick.schedule
            )?;
        }
        Ok(())
    }
}

/// The driver's version, for a CUDA device where the system tells; CubeCL does not.
fn nvidia(device: &Device) -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let text = text.filter(|_| device.target().family == Family::Cuda)?;
    text.lines().next().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn fault(path: &Path, line: usize, what: String) -> Error {
    Error::Table { path: path.display().to_string(), line, what }
}

/// An entry's line: `CLASS KERNEL [SCHEDULE] source=HEX us=N untuned_us=N of=NAME`.
fn entry(line: &str) -> Result<(String, Entry), String> {
    let shape = "an entry is `class kernel [schedule] source=… us=… untuned_us=… of=…`";
    // A class ends in a bracket too, but holds no space.
    let (names, rest) = line.split_once(" [").ok_or(shape)?;
    let (schedule, tail) = rest.split_once("] ").ok_or(shape)?;
    let (class, kernel) = names.split_once(' ').filter(|(_, k)| !k.contains(' ')).ok_or(shape)?;
    let word = |s: &str| s.split_once('=').is_some_and(|(k, v)| !k.is_empty() && v.parse::<u32>().is_ok());
    if let Some(bad) = schedule.split(' ').find(|s| !word(s)) {
        return Err(format!("`{bad}` is no word of a schedule, such as `lanes=16`"));
    }
    let mut fields = tail.splitn(4, ' ');
    let mut field = |name: &str| {
        let text = fields.next().and_then(|f| f.strip_prefix(name)).and_then(|f| f.strip_prefix('='));
        text.ok_or_else(|| format!("`{name}=…` is missing; {shape}"))
    };
    let hex = field("source")?;
    let source = u64::from_str_radix(hex, 16).map_err(|_| format!("`source={hex}` is no hexadecimal number"))?;
    let number = |name: &str, text: &str| match text.parse::<f64>() {
        Ok(n) if n > 0.0 => Ok(n),
        _ => Err(format!("`{name}={text}` is no time in microseconds")),
    };
    let us = number("us", field("us")?)?;
    let untuned_us = number("untuned_us", field("untuned_us")?)?;
    let of = field("of")?.to_string();
    let pick = Pick { kernel: kernel.into(), schedule: schedule.into() };
    Ok((class.into(), Entry { pick, source, us, untuned_us, of }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: &str = "device cpu, 2 cores\ndriver x\ncubecl 0.11.3\n";
    const LINE: &str = "map:8:f32[1]->f32[1]:1+0 map.plain [bits=64 lanes=16 units=1] source=00000000000000ff us=1.5 untuned_us=2.0 of=mini/decode";

    #[test]
    fn a_table_prints_and_reads_as_itself() {
        let table = Table::parse(&format!("{HEAD}# a remark\n\n{LINE}\n")).unwrap();
        assert_eq!(Table::parse(&table.to_string()).unwrap(), table);
        let whole = Table::parse(&format!("{HEAD}{}\n", LINE.replace(":1+0 ", " "))).unwrap();
        assert!(whole.entries.contains_key("map:8:f32[1]->f32[1]"), "a class that ends in a bracket");
        let e = &table.entries["map:8:f32[1]->f32[1]:1+0"];
        assert_eq!((e.source, e.us, e.pick.schedule.as_str()), (255, 1.5, "bits=64 lanes=16 units=1"));
        assert!(e.stale().unwrap().starts_with("the source of map.plain is "));
        assert!(table.tuned().is_empty());
    }

    #[test]
    fn every_fault_names_its_line() {
        for (text, line, what) in [
            (format!("{HEAD}{LINE}\n{LINE}\n"), 5, "is there twice"),
            (format!("{HEAD}what is this"), 4, "an entry is"),
            (format!("{HEAD}{}", LINE.replace("lanes=16", "lanes=x")), 4, "`lanes=x` is no word of a schedule"),
            (format!("{HEAD}{}", LINE.replace("00ff", "00fg")), 4, "no hexadecimal number"),
            (format!("{HEAD}{}", LINE.replace("us=1.5", "us=-1")), 4, "`us=-1` is no time"),
            (format!("{HEAD}{}", LINE.replace(" of=mini/decode", "")), 4, "`of=…` is missing"),
            ("device a\ndriver b\n".into(), 1, "no line says the cubecl"),
        ] {
            let (at, said) = Table::parse(&text).unwrap_err();
            assert!(at == line && said.contains(what), "{text}\n{at}: {said}");
        }
    }
}

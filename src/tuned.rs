//! The table of measured schedules for a device: where it is, and whether it is taken.

use crate::{Device, Error, home};
use omchat_codegen::Tuned;
use omchat_runtime::Table;
use std::path::PathBuf;

/// The variable that names a table or turns tables off.
pub const VARIABLE: &str = "OMCHAT_TUNED";

/// The table for a device, and why it is not taken if it is not.
#[derive(Clone, Debug, PartialEq)]
pub enum Tables {
    /// `OMCHAT_TUNED` is `off`.
    Off,
    /// There is none: nothing was measured here.
    None(PathBuf),
    /// It was measured on something else.
    Foreign(PathBuf, String),
    /// It is taken, but for entries of kernels that have changed.
    Taken(PathBuf, Table),
}

impl Tables {
    /// The table that `OMCHAT_TUNED` names, or else the device's own below [`home`].
    ///
    /// Errors: a table that cannot be read; one that is named and not there.
    pub fn of(device: &Device) -> Result<Tables, Error> {
        let Some(path) = path(device) else { return Ok(Tables::Off) };
        let named = std::env::var_os(VARIABLE).is_some_and(|v| !v.is_empty());
        if matches!(device, Device::Interp) || !named && !path.is_file() {
            return Ok(Tables::None(path));
        }
        let table = Table::read(&path)?;
        Ok(match table.foreign(device) {
            Some(why) => Tables::Foreign(path, why),
            None => Tables::Taken(path, table),
        })
    }

    /// What selection takes of it.
    pub fn tuned(&self) -> Tuned {
        match self {
            Tables::Taken(_, table) => table.tuned(),
            _ => Tuned::default(),
        }
    }

    /// What it is, in a line.
    pub fn told(&self) -> String {
        match self {
            Tables::Off => format!("off, by {VARIABLE}"),
            Tables::None(_) => "none measured; `omchat tune` measures".into(),
            Tables::Foreign(path, why) => format!("{} is not taken: {why}", path.display()),
            Tables::Taken(path, table) => {
                let stale = match table.stale().len() {
                    0 => String::new(),
                    n => format!(", {n} stale"),
                };
                format!("{} in {}{stale}", table.entries.len(), path.display())
            }
        }
    }
}

/// The file of a device's table; nothing where `OMCHAT_TUNED` is `off`.
pub fn path(device: &Device) -> Option<PathBuf> {
    match std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        Some(v) if v == "off" => None,
        Some(v) => Some(PathBuf::from(v)),
        None => Some(home().join("tuned").join(format!("{}.txt", slug(&Table::of(device).device)))),
    }
}

/// Letters and digits of a name, all else as single dashes.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_is_named_after_its_device() {
        assert_eq!(super::slug("wgpu (software Vulkan), llvmpipe 256"), "wgpu-software-vulkan-llvmpipe-256");
    }
}

//! What a device says of itself, as names and values that a person or a program can read.

use crate::device::Device;
use cubecl::features::Plane;
use cubecl::ir::DeviceProperties;

/// The release of CubeCL that kernels are compiled by.
pub const CUBECL: &str = "0.11.3";

impl Device {
    /// Names and values: adapter, dtypes, limits, planes, matrix units, memory. The interpreter has none.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let Device::Cube { client, target } = self else { return vec![] };
        let p = client.properties();
        let dtypes: Vec<&str> = target.dtypes.iter().map(|d| d.name()).collect();
        let mut out = vec![
            ("adapter", p.identity.name.clone()),
            ("compiled for", p.identity.fingerprint.clone()),
            ("dtypes", dtypes.join(" ")),
        ];
        if !target.packed.is_empty() {
            let names: Vec<&str> = target.packed.iter().map(|d| d.name()).collect();
            out.push(("packed weights", format!("{}: two to a word, widened in registers", names.join(" "))));
        }
        out.extend(limits(target));
        if target.turns < usize::MAX {
            out.push(("a unit's loops", format!("end after {} turns together: longer work is refused", target.turns)));
        }
        out.extend(units(p));
        if target.family == omchat_codegen::Family::Cuda {
            let told =
                if target.tf32 { "allowed: f32 einsums round factors to 10 bits" } else { "off: f32 is not rounded" };
            out.push(("tf32", told.into()));
        }
        let most = p.memory.max_memory().map_or("not told".into(), |b| format!("{b} bytes"));
        out.push(("memory", most));
        out.push(("free memory", self.room().to_string()));
        out
    }
}

/// The limits that codegen keeps to.
fn limits(t: &omchat_codegen::Target) -> Vec<(&'static str, String)> {
    let whole = |n: usize| if n == usize::MAX { "no limit".to_string() } else { format!("{n} bytes") };
    vec![
        ("lanes of f32", t.lanes.to_string()),
        ("units a cube", format!("{} used, {} at most", t.units, t.max_units)),
        ("cubes an axis", t.max_cubes.to_string()),
        ("buffers a kernel", t.max_bindings.to_string()),
        ("a buffer", whole(t.max_binding_bytes)),
        ("shared memory a cube", whole(t.shared_bytes)),
        ("alignment", whole(t.align)),
        ("cores", t.cores.to_string()),
    ]
}

/// Planes and matrix units, as CubeCL tells them.
fn units(p: &DeviceProperties) -> Vec<(&'static str, String)> {
    let (low, high) = (p.hardware.plane_size_min, p.hardware.plane_size_max);
    let planes = if p.features.plane.contains(Plane::Ops) { format!("{low} to {high} units") } else { "none".into() };
    let m = &p.features.matmul;
    let matrix = [("wmma", m.cmma.len()), ("mma", m.mma.len())];
    let kinds: Vec<String> =
        matrix.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} shapes of {name}")).collect();
    vec![
        ("planes", planes),
        ("matrix units", if kinds.is_empty() { "none".into() } else { kinds.join(", ") }),
        ("tensor memory accelerator", if p.features.tma.is_empty() { "no" } else { "yes" }.into()),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_is_the_pinned_one() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("cubecl = {{ version = \"={}\"", super::CUBECL)));
    }
}

//! Devices: which there are, which is best, and what each allows. The one file that knows cargo features.

#[cfg(feature = "cpu")]
mod batch;
pub(crate) mod memory;

use crate::Error;
use crate::faults;
use crate::room::{self, Home, Room};
use cubecl::MemoryScope;
use cubecl::prelude::Client;
use omchat_codegen::{Family, Target};
use omchat_ir::Dtype;
use std::fmt;

/// Where programs run.
#[derive(Clone)]
// A process holds a handful of devices; a box would only be in the way of whoever reads their facts.
#[allow(clippy::large_enum_variant)]
pub enum Device {
    /// The reference interpreter: right, and slow.
    Interp,
    /// A device of CubeCL.
    Cube {
        /// CubeCL's handle to it.
        client: Client,
        /// Its facts.
        target: Target,
    },
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// The names that `--device` takes, best first.
pub const NAMES: [&str; 4] = ["cuda", "wgpu", "cpu", "interp"];

impl Device {
    /// The device of that name: `cuda`, `wgpu`, `cpu` or `interp`.
    ///
    /// Errors: `NoDevice` with the reason and the mend.
    pub fn open(name: &str) -> Result<Device, Error> {
        faults::watch();
        let fail = |reason: String| Error::NoDevice { name: name.into(), reason };
        match name {
            "interp" => Ok(Device::Interp),
            "cpu" => open_cpu().map_err(fail),
            "wgpu" => open_wgpu(false).map_err(fail),
            "cuda" => open_cuda().map_err(fail),
            _ => Err(fail(format!("the names are {}", NAMES.join(", ")))),
        }
    }

    /// The best device that this machine has, and a line that says which and why.
    ///
    /// A software Vulkan driver is slower than the CPU runtime, so it is passed over.
    ///
    /// Errors: `NoDevice` if not even the CPU runtime is compiled in.
    pub fn best() -> Result<(Device, String), Error> {
        faults::watch();
        let mut passed = vec![];
        for (name, open) in
            [("cuda", open_cuda as fn() -> Result<Device, String>), ("wgpu", || open_wgpu(true)), ("cpu", open_cpu)]
        {
            match open() {
                Ok(d) => {
                    let why = if passed.is_empty() { "the best there is".to_string() } else { passed.join("; ") };
                    let line = format!("device {} ({why})", d.name());
                    return Ok((d, line));
                }
                Err(why) => passed.push(format!("no {name}: {why}")),
            }
        }
        Err(Error::NoDevice { name: "best".into(), reason: passed.join("; ") })
    }

    /// The name that is printed.
    pub fn name(&self) -> &str {
        match self {
            Device::Interp => "interp",
            Device::Cube { target, .. } => &target.name,
        }
    }

    /// Its facts; the interpreter counts as a CPU without limits.
    pub fn target(&self) -> Target {
        match self {
            Device::Interp => Target { name: "interp".into(), ..Target::cpu(1) },
            Device::Cube { target, .. } => target.clone(),
        }
    }

    /// The same device with tf32 allowed where it has it: sums of products of f32 may round their factors to 10 bits of
    /// fraction. Its name says so, and what was measured without it is not taken.
    #[must_use]
    pub fn with_tf32(self) -> Device {
        match self {
            Device::Cube { client, target } => Device::Cube { client, target: target.with_tf32() },
            interp => interp,
        }
    }

    /// The same device without asking for weights ahead of their reader.
    #[must_use]
    pub fn without_prefetch(self) -> Device {
        match self {
            Device::Cube { client, target } => Device::Cube { client, target: Target { prefetch: false, ..target } },
            interp => interp,
        }
    }

    /// The element type in which models run there unless told otherwise.
    pub fn default_dtype(&self) -> Dtype {
        match self.target().family {
            Family::Cuda => Dtype::Bf16,
            Family::Cpu | Family::Wgpu => Dtype::F32,
        }
    }

    /// Bytes that live allocations hold on the device, padding not counted; nothing for the interpreter.
    pub fn bytes_in_use(&self) -> Option<u64> {
        match self {
            Device::Interp => None,
            Device::Cube { client, .. } => Some(bytes_in_use(client)),
        }
    }

    /// The memory that it has left: the machine's for the CPU and for software adapters, a card's own elsewhere.
    pub fn room(&self) -> Room {
        Room::of(self.home(), room::machine())
    }

    /// Bytes that may be allocated, where the system tells; nothing is refused where it does not.
    pub fn free_bytes(&self) -> Option<u64> {
        self.room().bytes()
    }

    fn home(&self) -> Home {
        let Device::Cube { client, target } = self else { return Home::Machine };
        let p = client.properties();
        if !room::on_a_card(target.family, &p.identity) {
            return Home::Machine;
        }
        let held = client.memory_report(MemoryScope::Device).usage().bytes_reserved;
        Home::Card { total: p.memory.max_memory(), held }
    }
}

#[cfg(feature = "cpu")]
fn open_cpu() -> Result<Device, String> {
    let client = batch::start(|| cubecl::Device::cpu().map(|d| d.client()).map_err(|e| e.to_string()))?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    Ok(Device::Cube { client, target: Target::cpu(cores) })
}

#[cfg(not(feature = "cpu"))]
fn open_cpu() -> Result<Device, String> {
    Err("built without the feature `cpu`".into())
}

/// Turns after which Mesa's software driver ends all loops of a unit (`LP_MAX_TGSI_LOOP_ITERATIONS`).
#[cfg(feature = "wgpu")]
const TURNS: usize = 65_535;

#[cfg(feature = "wgpu")]
fn open_wgpu(hardware_only: bool) -> Result<Device, String> {
    use cubecl::device::WgpuDeviceKind;
    let open = || cubecl::Device::wgpu(WgpuDeviceKind::default()).map_err(|e| e.to_string()).map(|d| d.client());
    let mend = "no adapter; install a Vulkan driver (Debian: apt-get install mesa-vulkan-drivers libvulkan1)";
    let client = std::panic::catch_unwind(open).map_err(|_| mend.to_string())??;
    faults::clear();
    let p = client.properties();
    // CubeCL hides planes on software adapters.
    let software = !p.features.plane.contains(cubecl::features::Plane::Ops);
    if hardware_only && software {
        return Err("only a software driver, slower than the CPU runtime".into());
    }
    let mut target = Target { software, ..Target::wgpu() };
    target.max_units = p.hardware.max_units_per_cube;
    target.max_cubes = p.hardware.max_cube_count.0.min(p.hardware.max_cube_count.1);
    target.max_bindings = (p.hardware.max_bindings as usize).min(31);
    target.max_binding_bytes = usize::try_from(p.memory.max_page_size).unwrap_or(usize::MAX);
    target.shared_bytes = p.hardware.max_shared_memory_size;
    target.align = (p.memory.alignment as usize).max(256);
    if software {
        target.turns = TURNS;
        target.name = "wgpu (software Vulkan)".into();
    }
    Ok(Device::Cube { client, target })
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_: bool) -> Result<Device, String> {
    Err("built without the feature `wgpu`".into())
}

#[cfg(feature = "cuda")]
fn open_cuda() -> Result<Device, String> {
    let number = crate::collective::local_rank(|name| std::env::var(name).ok())?;
    let open = || match cubecl::Device::cuda(number) {
        // More ranks than devices, or a launcher that shows each rank one of its own.
        Err(cubecl::device::DeviceUnavailable::NoSuchDevice { available, .. }) if available > 0 => {
            cubecl::Device::cuda(number % available).map_err(|e| e.to_string()).map(|d| d.client())
        }
        found => found.map_err(|e| e.to_string()).map(|d| d.client()),
    };
    let client = std::panic::catch_unwind(open).map_err(|_| "the CUDA driver failed to start".to_string())??;
    faults::clear();
    let p = client.properties();
    let sm = capability(&p.identity.fingerprint)?;
    let mut target = Target::cuda(sm);
    target.shared_bytes = p.hardware.max_shared_memory_size;
    target.max_units = p.hardware.max_units_per_cube;
    target.plane = p.hardware.plane_size_max;
    if let Some(cores) = p.hardware.num_streaming_multiprocessors {
        target = target.with_cores(cores);
    }
    target.name = "cuda".into();
    Ok(Device::Cube { client, target })
}

/// The compute capability times ten, from what CubeCL compiles for: `ptx_sm90`.
///
/// Errors: there is none, or it is below 8.0.
#[cfg(feature = "cuda")]
fn capability(fingerprint: &str) -> Result<u32, String> {
    match fingerprint.strip_prefix("ptx_sm").map(str::parse::<u32>) {
        Some(Ok(sm)) if sm >= 80 => Ok(sm),
        Some(Ok(sm)) => {
            Err(format!("the card's compute capability is {}.{}, kernels need 8.0 (Ampere) or later", sm / 10, sm % 10))
        }
        _ => Err(format!("the card's compute capability is not known: CubeCL compiles for `{fingerprint}`")),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda() -> Result<Device, String> {
    Err("built without the feature `cuda`".into())
}

/// Bytes that live allocations hold on a client's device, padding not counted.
pub(crate) fn bytes_in_use(client: &Client) -> u64 {
    client.memory_report(cubecl::MemoryScope::Device).usage().bytes_in_use
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::capability;

    #[test]
    fn capabilities_of_cards() {
        assert_eq!(capability("ptx_sm90"), Ok(90));
        assert_eq!(capability("ptx_sm120"), Ok(120));
        assert!(capability("ptx_sm75").is_err_and(|e| e.contains("is 7.5, kernels need 8.0")));
        assert!(capability("hip-kernel_gfx1151").is_err_and(|e| e.contains("is not known")));
    }
}

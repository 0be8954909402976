//! Targets: what a device is and what it forbids, as plain data.

use omchat_ir::Dtype;

/// The family of a device: which kernels and which schedules make sense there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// CubeCL's CPU runtime: one unit a cube, wide vectors, no planes.
    Cpu,
    /// WebGPU or Vulkan through WGSL.
    Wgpu,
    /// CUDA through NVRTC.
    Cuda,
}

/// Facts of a device that decisions are made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The family.
    pub family: Family,
    /// The name that is printed.
    pub name: String,
    /// Dtypes that its buffers and kernels may hold.
    pub dtypes: Vec<Dtype>,
    /// Halves that it lacks, but whose weights may lie two to a word: kernels widen what they read of them, and write
    /// none.
    pub packed: Vec<Dtype>,
    /// Whether a CPU plays the device: its shared memory is memory like any other.
    pub software: bool,
    /// Most turns that the loops of one unit may take, all of them together; `usize::MAX` where nobody counts. A software
    /// driver ends loops there and goes on with what they have.
    pub turns: usize,
    /// Widest vector of f32 that pays.
    pub lanes: usize,
    /// Units in a cube that pays (threads in a block); 1 on the CPU runtime.
    pub units: u32,
    /// Most units a cube may have.
    pub max_units: u32,
    /// Most cubes along one axis of a launch.
    pub max_cubes: u32,
    /// Most buffers that one kernel may bind.
    pub max_bindings: usize,
    /// Most bytes that one binding may have.
    pub max_binding_bytes: usize,
    /// Bytes of shared memory a cube may use.
    pub shared_bytes: usize,
    /// Units that run in step (warp, subgroup); 1 where there is none.
    pub plane: u32,
    /// Cores, for the CPU; streaming multiprocessors for CUDA; 1 where unknown.
    pub cores: u32,
    /// Compute capability times ten for CUDA (80, 90), else 0.
    pub sm: u32,
    /// Whether sums of products of f32 may round their factors to tf32, 10 bits of fraction, for matrix units that take
    /// no more. Off unless asked for.
    pub tf32: bool,
    /// Whether weights may be asked for ahead of their reader: the cache that all processors share has room for them.
    pub prefetch: bool,
    /// Bytes from which buffers must be aligned.
    pub align: usize,
}

impl Target {
    /// CubeCL's CPU runtime on a machine of that many cores.
    pub fn cpu(cores: u32) -> Target {
        Target {
            family: Family::Cpu,
            name: "cpu".into(),
            dtypes: Dtype::ALL.to_vec(),
            packed: vec![],
            software: false,
            turns: usize::MAX,
            lanes: 16,
            units: 1,
            max_units: cores.max(1),
            max_cubes: u32::MAX,
            max_bindings: 64,
            max_binding_bytes: usize::MAX,
            shared_bytes: 48 << 10,
            plane: 1,
            cores: cores.max(1),
            sm: 0,
            tf32: false,
            prefetch: false,
            align: 64,
        }
    }

    /// A usual native WebGPU adapter: the standard's default limits, 128 MiB a binding among them, but 16 buffers a
    /// kernel; attention and its backward take 10 to 13.
    pub fn wgpu() -> Target {
        Target {
            family: Family::Wgpu,
            name: "wgpu".into(),
            dtypes: vec![Dtype::F32, Dtype::I32, Dtype::Bool],
            packed: vec![Dtype::Bf16, Dtype::F16],
            software: false,
            turns: usize::MAX,
            lanes: 4,
            units: 64,
            max_units: 256,
            max_cubes: 65_535,
            max_bindings: 16,
            max_binding_bytes: 128 << 20,
            shared_bytes: 16 << 10,
            plane: 1,
            cores: 1,
            sm: 0,
            tf32: false,
            prefetch: false,
            align: 256,
        }
    }

    /// WebGPU with the standard's default limits alone: 8 buffers a kernel.
    pub fn browser() -> Target {
        Target { name: "a browser".into(), max_bindings: 8, ..Target::wgpu() }
    }

    /// CUDA of compute capability `sm` / 10.
    pub fn cuda(sm: u32) -> Target {
        Target {
            family: Family::Cuda,
            name: format!("cuda sm_{sm}"),
            dtypes: Dtype::ALL.to_vec(),
            packed: vec![],
            software: false,
            turns: usize::MAX,
            lanes: 4,
            units: 256,
            max_units: 1024,
            max_cubes: 65_535,
            max_bindings: 64,
            max_binding_bytes: usize::MAX,
            shared_bytes: if sm >= 90 { 227 << 10 } else { 99 << 10 },
            plane: 32,
            cores: 0,
            sm,
            tf32: false,
            prefetch: false,
            align: 256,
        }
        .with_cores(if sm >= 90 { 132 } else { 108 })
    }

    /// The same with that many processors. CUDA tells no cache's size; cards of 100 processors and more have 40 MB of it.
    pub fn with_cores(self, cores: u32) -> Target {
        Target { cores, prefetch: self.family == Family::Cuda && cores >= 100, ..self }
    }

    /// The same with tf32 allowed, and told in its name, where its matrix units take tf32: on CUDA. Others stay as they are.
    pub fn with_tf32(self) -> Target {
        if self.family != Family::Cuda || self.tf32 {
            return self;
        }
        Target { tf32: true, name: format!("{} tf32", self.name), ..self }
    }

    /// Whether buffers of that dtype may exist there.
    pub fn holds(&self, dtype: Dtype) -> bool {
        self.dtypes.contains(&dtype)
    }

    /// Whether weights of that dtype stay as they are there: packed, and widened in registers.
    pub fn packs(&self, dtype: Dtype) -> bool {
        self.packed.contains(&dtype)
    }

    /// Whether kernels may read that dtype there.
    pub fn reads(&self, dtype: Dtype) -> bool {
        self.holds(dtype) || self.packs(dtype)
    }
}

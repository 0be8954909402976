//! The text of a kernel with no device present. The one file that knows which compilers are built in.

use std::sync::Arc;

use cubecl::ir::features::{Features, MmaConfig, Plane};
use cubecl::ir::{DeviceIdentity, HardwareProperties, MemoryDeviceProperties};
use cubecl::prelude::*;

use crate::bind::Buffer;

/// A language that kernels are compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// CUDA C++ as NVRTC takes it, for compute capability `sm` / 10.
    CudaCpp {
        /// 80, 90, …
        sm: u32,
    },
    /// WGSL.
    Wgsl,
}

/// A device that is not there: properties enough to compile a kernel for it.
pub(crate) struct Offline {
    dialect: Dialect,
    device: Arc<DeviceProperties>,
}

impl Offline {
    pub(crate) fn new(dialect: Dialect) -> Offline {
        Offline { dialect, device: Arc::new(properties(dialect)) }
    }

    pub(crate) fn properties(&self) -> (Arc<DeviceProperties>, Arc<TargetProperties>) {
        (self.device.clone(), Arc::new(TargetProperties::default()))
    }

    /// Whether halves are bound two to a word there.
    pub(crate) fn packs(&self) -> bool {
        self.dialect == Dialect::Wgsl
    }

    /// A buffer of nothing, to stand where a launch has one.
    pub(crate) fn buffer(&self) -> Buffer {
        use cubecl::server::Handle;
        use cubecl_common::device::{DeviceId, ServiceId};
        use cubecl_environment::stream::StreamId;
        let service = ServiceId::of::<Offline>(DeviceId { type_id: 0, index_id: 0 });
        Buffer { handle: Handle::new(service, StreamId::current(), 0), elements: 0 }
    }

    /// Compiles to text.
    pub(crate) fn text(&self, kernel: Box<dyn CubeKernel>) -> Result<String, String> {
        match self.dialect {
            Dialect::CudaCpp { sm } => cuda(&*kernel, sm),
            Dialect::Wgsl => wgsl(&*kernel),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(kernel: &dyn CubeKernel, sm: u32) -> Result<String, String> {
    use cubecl::Compiler;
    use cubecl::cuda::compiler::{CudaBackend, CudaCompilationOptions, CudaCompiler};
    let arch = cubecl::ir::nvidia::SmArch::new(sm, sm >= 90);
    let options = CudaCompilationOptions { arch: Some(arch), ..Default::default() };
    let text = CudaCompiler::new(CudaBackend::Cpp).compile(define(kernel)?, &options);
    text.map(|t| t.to_string()).map_err(|e| format!("{e:?}"))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &dyn CubeKernel, _: u32) -> Result<String, String> {
    Err("this build has no CUDA compiler: build with the feature `cuda`".into())
}

#[cfg(feature = "wgpu")]
fn wgsl(kernel: &dyn CubeKernel) -> Result<String, String> {
    use cubecl::Compiler;
    let text = cubecl::wgpu::WgslCompiler.compile(define(kernel)?, &Default::default());
    text.map(|t| t.to_string()).map_err(|e| format!("{e:?}"))
}

#[cfg(not(feature = "wgpu"))]
fn wgsl(_: &dyn CubeKernel) -> Result<String, String> {
    Err("this build has no WGSL compiler: build with the feature `wgpu`".into())
}

/// The kernel's definition; a fault in its expansion is an error, not a panic.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn define(kernel: &dyn CubeKernel) -> Result<KernelDefinition, String> {
    cubecl::define_kernel(kernel).map_err(|e| format!("{e:?}"))
}

/// Plausible properties of the devices that each dialect is for; only their features reach a kernel's text.
fn properties(dialect: Dialect) -> DeviceProperties {
    let (plane, shared, units) = match dialect {
        Dialect::CudaCpp { .. } => (32, 227 << 10, 1024),
        Dialect::Wgsl => (8, 16 << 10, 256),
    };
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: plane,
        plane_size_max: plane,
        max_bindings: 32,
        max_shared_memory_size: shared,
        max_cube_count: (65_535, 65_535, 65_535),
        max_units_per_cube: units,
        max_cube_dim: (units, units, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: 4,
        cube_mma_reserved_shared_memory: 0,
    };
    let mut features = Features::default();
    features.plane.insert(Plane::Ops);
    if let Dialect::CudaCpp { sm } = dialect {
        cuda_features(&mut features, sm);
    }
    let identity = DeviceIdentity { name: "offline".into(), fingerprint: "offline".into(), physical: None };
    let memory = MemoryDeviceProperties::new(u64::MAX, 256);
    DeviceProperties::new(features, memory, hardware, cubecl::profile::TimingMethod::Device, identity)
}

/// What CubeCL advertises on CUDA that kernels here rely on: matrix units through `wmma`, and `cp.async`.
fn cuda_features(features: &mut Features, sm: u32) {
    features.plane.insert(Plane::Sync);
    features.copy_async = sm >= 80;
    features.memory_reinterpret = true;
    features.alignment = true;
    let narrow = [half::bf16::elem_type_native(), half::f16::elem_type_native()];
    for elem in narrow.into_iter().filter(|_| sm >= 80) {
        let sum = f32::elem_type_native();
        features.matmul.cmma.insert(MmaConfig { a_type: elem, b_type: elem, cd_type: sum, m: 16, n: 16, k: 16 });
    }
}

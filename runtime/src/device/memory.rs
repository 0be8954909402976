//! Where a buffer lies in a device's memory: for what carries between devices.

use super::Device;
use crate::collective::fabric::{Fabric, Held};
use cubecl::prelude::Client;
use cubecl::server::Handle;
use omchat_codegen::Family;

/// CubeCL names its servers by this trait alone, which no path but this leads to; the pin of the release is exact.
#[cfg(any(feature = "cuda", feature = "cpu"))]
type Server<R> = <R as cubecl::__private::Runtime>::Server;

/// The memory of a buffer, so many bytes of it; work of other streams on it is waited for by this thread's stream.
///
/// Errors: what the device answers; a kind of device whose memory has no address.
pub(crate) fn held(client: &Client, family: Family, handle: &Handle, bytes: usize) -> Result<Held, String> {
    match family {
        Family::Cuda => cuda(client, handle, bytes),
        Family::Cpu => cpu(client, handle, bytes),
        Family::Wgpu => Err("a buffer of WebGPU has no address".into()),
    }
}

/// What carries between this device and those of other ranks.
///
/// Errors: why nothing does.
#[cfg(feature = "nccl")]
pub(crate) fn fabric(device: &Device) -> Result<Box<dyn Fabric>, String> {
    let Device::Cube { client, .. } = device else { return Err("the device is the interpreter".into()) };
    let number = usize::from(client.service_id().device.index_id);
    match crate::collective::Nccl::open(number) {
        Ok(nccl) => Ok(Box::new(nccl)),
        Err(why) => Err(why.to_string()),
    }
}

#[cfg(not(feature = "nccl"))]
pub(crate) fn fabric(_: &Device) -> Result<Box<dyn Fabric>, String> {
    Err("built without the feature `nccl`".into())
}

#[cfg(feature = "cuda")]
fn cuda(client: &Client, handle: &Handle, bytes: usize) -> Result<Held, String> {
    use cubecl::cuda::CudaRuntime;
    let kept = client.get_resource::<Server<CudaRuntime>>(handle.clone()).map_err(|e| format!("{e:?}"))?;
    let (address, size) = (kept.resource().ptr, kept.resource().size);
    long(size, bytes)?;
    // SAFETY: CubeCL neither frees nor moves nor hands out again what is bound, and the binding is kept.
    Ok(unsafe { Held::new(address, bytes, Box::new((kept, handle.clone()))) })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &Client, _: &Handle, _: usize) -> Result<Held, String> {
    Err("built without the feature `cuda`".into())
}

#[cfg(feature = "cpu")]
fn cpu(client: &Client, handle: &Handle, bytes: usize) -> Result<Held, String> {
    use cubecl::cpu::CpuRuntime;
    let kept = client.get_resource::<Server<CpuRuntime>>(handle.clone()).map_err(|e| format!("{e:?}"))?;
    let (pointer, size) = kept.resource().get_write_ptr_and_length();
    long(size as u64, bytes)?;
    // SAFETY: as for CUDA.
    Ok(unsafe { Held::new(pointer.expose_provenance() as u64, bytes, Box::new((kept, handle.clone()))) })
}

#[cfg(not(feature = "cpu"))]
fn cpu(_: &Client, _: &Handle, _: usize) -> Result<Held, String> {
    Err("built without the feature `cpu`".into())
}

#[cfg(any(feature = "cuda", feature = "cpu"))]
fn long(have: u64, need: usize) -> Result<(), String> {
    if have >= need as u64 { Ok(()) } else { Err(format!("a buffer of {have} bytes, and {need} are exchanged")) }
}

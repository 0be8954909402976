//! A kernel that the device's own compiler refuses comes back as an error, never as stale bytes.
//!
//! Alone in its process: a device may stay unusable afterwards.
#![allow(clippy::unwrap_used, clippy::panic)]

use omchat_ir::{Dtype, parse};
use omchat_runtime::{Device, Error, Executable, HostTensor, Store};

#[test]
fn a_kernel_that_does_not_compile_is_an_error() {
    let mut device = match Device::open("wgpu") {
        Ok(d) => d,
        Err(e) => return println!("skipped: a device's failure: {e}"),
    };
    // WGSL has no 16-bit integers, in which bf16 is bound: a target that claims otherwise sends it such a kernel.
    let Device::Cube { target, .. } = &mut device else { panic!("wgpu is a device of CubeCL") };
    target.dtypes.push(Dtype::Bf16);
    let m = parse("func @f(%x: bf16[64]) -> bf16[64] { %y = add %x, %x return %y }").unwrap();
    let exe = Executable::load(&device, &m, m.named("f").unwrap()).unwrap();
    let x = HostTensor::floats(Dtype::Bf16, [64], &[1.5; 64]);
    match exe.run(&[("x", x)], &mut Store::default()) {
        Err(Error::Device { device, message }) => {
            assert!(device.starts_with("wgpu") && !message.is_empty(), "{device}: {message}");
        }
        Err(e) => panic!("another error: {e}"),
        Ok(out) => panic!("stale bytes: {:?}", &out[0].to_f32()[..4]),
    }
}

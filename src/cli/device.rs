//! Which device and which element type a command runs with.

use super::{Error, note};
use omchat::{Device, EngineOptions};
use omchat_ir::Dtype;

/// The device of that name, or the best there is, with a line on stderr that says which and why.
pub fn open(name: Option<&str>) -> Result<Device, Error> {
    match name {
        Some(name) => Ok(Device::open(name)?),
        None => {
            let (device, why) = Device::best()?;
            note(why);
            Ok(device)
        }
    }
}

/// The same without the line.
pub fn quietly(name: Option<&str>) -> Result<Device, Error> {
    match name {
        Some(name) => Ok(Device::open(name)?),
        None => Ok(Device::best()?.0),
    }
}

/// Engine options with the element type of that name.
pub fn options(dtype: Option<&str>) -> Result<EngineOptions, Error> {
    let dtype = dtype
        .map(|name| match Dtype::from_name(name) {
            Some(d) if d.is_float() => Ok(d),
            _ => Err(Error::input(format!("`{name}` is no element type for a model; give f32, bf16 or f16"))),
        })
        .transpose()?;
    Ok(EngineOptions { dtype, ..EngineOptions::default() })
}

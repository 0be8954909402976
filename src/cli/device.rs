//! Which device and which element type a command runs with.

use super::{Error, note};
use omchat::{Device, EngineOptions};
use omchat_ir::Dtype;

/// The variable that allows tf32.
const TF32: &str = "OMCHAT_TF32";

/// The device of that name, or the best there is, with a line on stderr that says which and why.
pub fn open(name: Option<&str>) -> Result<Device, Error> {
    match name {
        Some(name) => allowed(Device::open(name)?),
        None => {
            let (device, why) = Device::best()?;
            note(why);
            allowed(device)
        }
    }
}

/// The same without the line.
pub fn quietly(name: Option<&str>) -> Result<Device, Error> {
    match name {
        Some(name) => allowed(Device::open(name)?),
        None => allowed(Device::best()?.0),
    }
}

/// The device with tf32 where `OMCHAT_TF32` allows it.
///
/// Errors: the variable is neither `on` nor `off`.
fn allowed(device: Device) -> Result<Device, Error> {
    let value = std::env::var_os(TF32).unwrap_or_default();
    Ok(if tf32(&value.to_string_lossy())? { device.with_tf32() } else { device })
}

/// Whether a value of the variable allows tf32.
fn tf32(value: &str) -> Result<bool, Error> {
    match value {
        "on" => Ok(true),
        "off" | "" => Ok(false),
        other => {
            Err(Error::input(format!("{TF32} is `{other}`: set it to `on`, to round f32 factors to tf32, or `off`")))
        }
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

#[cfg(test)]
mod tests {
    #[test]
    fn tf32_is_on_off_or_a_mistake() {
        assert!(matches!(super::tf32("on"), Ok(true)));
        assert!(matches!(super::tf32("off"), Ok(false)));
        assert!(matches!(super::tf32(""), Ok(false)));
        assert!(super::tf32("1").is_err_and(|e| e.to_string().contains("OMCHAT_TF32 is `1`: set it to `on`")));
    }
}

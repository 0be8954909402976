//! Which device and which element type a command runs with.

use super::{Error, note};
use omchat::{Device, EngineOptions};
use omchat_ir::Dtype;

/// The variable that allows tf32.
const TF32: &str = "OMCHAT_TF32";
/// The variable that forbids to ask for weights ahead of their reader.
const PREFETCH: &str = "OMCHAT_PREFETCH";

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

/// The device with what `OMCHAT_TF32` and `OMCHAT_PREFETCH` allow.
///
/// Errors: a variable is neither `on` nor `off`.
fn allowed(device: Device) -> Result<Device, Error> {
    let value = |name: &str| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
    let device =
        if is_on(TF32, &value(TF32), false, "round f32 factors to tf32")? { device.with_tf32() } else { device };
    let ahead = is_on(PREFETCH, &value(PREFETCH), true, "ask for weights ahead of their reader")?;
    Ok(if ahead { device } else { device.without_prefetch() })
}

/// Whether a variable's value is `on`; `usual` where it is not set. `what` is what it switches.
fn is_on(name: &str, value: &str, usual: bool, what: &str) -> Result<bool, Error> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        "" => Ok(usual),
        other => Err(Error::input(format!("{name} is `{other}`: set it to `on`, to {what}, or `off`"))),
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
    use super::is_on;

    #[test]
    fn variables_are_on_off_or_a_mistake() {
        assert!(matches!(is_on("OMCHAT_TF32", "on", false, ""), Ok(true)));
        assert!(matches!(is_on("OMCHAT_TF32", "off", true, ""), Ok(false)));
        assert!(matches!(is_on("OMCHAT_TF32", "", false, ""), Ok(false)));
        assert!(matches!(is_on("OMCHAT_PREFETCH", "", true, ""), Ok(true)));
        let wrong = is_on("OMCHAT_TF32", "1", false, "round");
        assert!(wrong.is_err_and(|e| e.to_string().contains("OMCHAT_TF32 is `1`: set it to `on`, to round, or `off`")));
    }
}

//! Panics inside CubeCL, kept as errors.
//!
//! A compiler or kernel that panics on a device's own thread is swallowed there, and the next read answers
//! `Ok` with stale bytes. A hook notes such panics; every run asks before it trusts what it read.

use std::panic;
use std::sync::{Mutex, Once};

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

/// Installs the hook once; panics from elsewhere go on to the hook that was there.
pub(crate) fn watch() {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|l| l.file().to_string()).unwrap_or_default();
            let theirs = ["cubecl", "pliron", "tracel", "naga", "wgpu", "cudarc"].iter().any(|c| place.contains(c));
            if !theirs {
                return before(info);
            }
            let what = info.payload();
            let text = what
                .downcast_ref::<&str>()
                .map(|s| (*s).to_string())
                .or_else(|| what.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            if let Ok(mut seen) = SEEN.lock() {
                seen.push(text.lines().take(6).collect::<Vec<_>>().join(" "));
            }
        }));
    });
}

/// Panics noted since the last call.
pub(crate) fn take() -> Option<String> {
    let mut seen = SEEN.lock().ok()?;
    (!seen.is_empty()).then(|| std::mem::take(&mut *seen).join("; "))
}

/// Forgets what was noted: probing for a device that is not there.
#[allow(dead_code)]
pub(crate) fn clear() {
    drop(take());
}

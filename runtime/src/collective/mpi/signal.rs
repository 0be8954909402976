//! SIGTERM, by which a launcher ends the ranks that are left when one dies: noted, so that the error can be told first.

use std::sync::atomic::{AtomicBool, Ordering};

/// Seconds after which the process ends anyway; `mpirun` itself kills after one.
const LAST: u32 = 3;

static TOLD: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    TOLD.store(true, Ordering::Relaxed);
    // SAFETY: `alarm` may be called in a handler. Its signal ends the process if nothing looks at the note.
    unsafe { libc::alarm(LAST) };
}

/// From now on the first SIGTERM is noted; a second one ends the process as ever.
pub(super) fn catch() {
    // SAFETY: the handler does only what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut());
    }
}

/// Whether this process was told to end.
pub(super) fn told() -> bool {
    TOLD.load(Ordering::Relaxed)
}

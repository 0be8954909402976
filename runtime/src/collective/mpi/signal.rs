//! Signals by which a launcher ends the ranks that are left when one dies: noted, so that the error can be told first.
//!
//! Open MPI's `mpirun` sends SIGCONT at once, SIGTERM a second later, and SIGKILL soon after that: what is to be told must
//! be told between the first two.

use std::sync::atomic::{AtomicBool, Ordering};

/// Seconds after SIGTERM at which the process ends anyway.
const LAST: u32 = 3;

static TOLD: AtomicBool = AtomicBool::new(false);
static WOKEN: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    TOLD.store(true, Ordering::Relaxed);
    // SAFETY: `alarm` may be called in a handler. Its signal ends the process if nothing looks at the note.
    unsafe { libc::alarm(LAST) };
}

extern "C" fn wake(_: libc::c_int) {
    WOKEN.store(true, Ordering::Relaxed);
}

/// From now on the first SIGTERM is noted, and each SIGCONT; a second SIGTERM ends the process as ever.
pub(super) fn catch() {
    // SAFETY: the handler does only what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut());
        action.sa_sigaction = wake as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGCONT, &action, std::ptr::null_mut());
    }
}

/// Whether this process was sent SIGCONT since it was asked last.
pub(super) fn woken() -> bool {
    WOKEN.swap(false, Ordering::Relaxed)
}

/// Whether this process was told to end.
pub(super) fn told() -> bool {
    TOLD.load(Ordering::Relaxed)
}

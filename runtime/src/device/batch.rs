//! Threads that wake without taking the core of whoever woke them.
//!
//! CubeCL's CPU server hands a launch to one worker after another. Where Linux lets a worker that wakes run in its server's
//! place, the next worker is told of the launch milliseconds later, and the launch takes that much longer (two cores, Linux 6.18:
//! one of 4.5 ms took 8.0 in every second process). Threads of the batch policy do not push others aside.

use std::thread;

/// Runs `f` in a thread of the batch policy, which threads that it starts inherit; the caller's own policy stays. Where there
/// is no such policy, or it may not be set, it is a thread like any other.
pub(super) fn start<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let out = thread::scope(|s| {
        s.spawn(|| {
            yield_on_wake();
            f()
        })
        .join()
    });
    out.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(target_os = "linux")]
fn yield_on_wake() {
    // SAFETY: all of its fields are numbers, for which 0 will do; some systems have more of them than the priority.
    let priority: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread; the priority outlives the call, which changes nothing if it fails.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority) };
}

#[cfg(not(target_os = "linux"))]
fn yield_on_wake() {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::start;
    use std::thread;

    fn policy() -> i32 {
        // SAFETY: 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn threads_inherit_the_policy_and_the_caller_keeps_its_own() {
        let own = policy();
        let inherited = start(|| thread::spawn(policy).join());
        assert_eq!((inherited.ok(), policy()), (Some(libc::SCHED_BATCH), own));
    }
}

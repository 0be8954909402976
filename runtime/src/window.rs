//! While one thread records launches, no other may touch the device: streams share queues, and CubeCL refuses what
//! meets a recording there.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static WINDOW: RwLock<()> = RwLock::new(());

/// Held by whoever uses a device.
pub(crate) fn open() -> RwLockReadGuard<'static, ()> {
    WINDOW.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by whoever records.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    WINDOW.write().unwrap_or_else(PoisonError::into_inner)
}

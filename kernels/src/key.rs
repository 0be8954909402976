//! Comptime arguments that are cheap to look up: hashed once, compared by address first.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A shared comptime argument. Every launch looks its kernel up by all comptime arguments; a plan of a hundred
/// steps would cost more to hash than the launch itself.
#[derive(Debug)]
pub(crate) struct Key<T>(Arc<T>, u64);

impl<T: Hash> Key<T> {
    pub(crate) fn new(value: T) -> Key<T> {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Key(Arc::new(value), hasher.finish())
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Key<T> {
        Key(self.0.clone(), self.1)
    }
}

impl<T> Deref for Key<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.1.hash(state);
    }
}

impl<T: PartialEq> PartialEq for Key<T> {
    fn eq(&self, other: &Key<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.1 == other.1 && self.0 == other.0)
    }
}

impl<T: Eq> Eq for Key<T> {}

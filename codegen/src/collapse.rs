//! Fewer axes: sizes of 1 go, and neighbours that every view walks as one become one.

use crate::body::Step;
use crate::nest::Nest;

impl Nest {
    /// The same nest over as few axes as its views allow. A nest whose body asks for an index keeps its axes.
    #[must_use]
    pub fn collapsed(mut self) -> Nest {
        let asks = |s: &Step| matches!(s, Step::Index { .. });
        if self.body.steps.iter().chain(&self.epilogue.steps).any(asks) || self.points() == 0 {
            return self;
        }
        // An arg_max counts folded points row-major, which merging keeps.
        let mut axis = 0;
        while axis < self.kept.len() + self.folded.len() {
            if self.size(axis) == 1 && self.droppable(axis) {
                self.drop_axis(axis);
            } else {
                axis += 1;
            }
        }
        let mut outer = 0;
        while outer + 1 < self.kept.len() + self.folded.len() {
            if self.mergeable(outer) {
                self.merge(outer);
            } else {
                outer += 1;
            }
        }
        self
    }

    fn size(&self, axis: usize) -> usize {
        if axis < self.kept.len() { self.kept[axis] } else { self.folded[axis - self.kept.len()] }
    }

    /// One folded axis stays, so that kernels find where to fold.
    fn droppable(&self, axis: usize) -> bool {
        axis < self.kept.len() || self.folded.len() > 1
    }

    fn drop_axis(&mut self, axis: usize) {
        for r in &mut self.reads {
            r.strides.remove(axis);
            if let Some(at) = &mut r.at {
                at.strides.remove(axis);
            }
        }
        if axis < self.kept.len() {
            self.kept.remove(axis);
            for w in &mut self.writes {
                w.strides.remove(axis);
            }
        } else {
            self.folded.remove(axis - self.kept.len());
        }
    }

    /// Whether axes `outer` and `outer + 1` are walked as one by every view.
    fn mergeable(&self, outer: usize) -> bool {
        let inner = outer + 1;
        if inner == self.kept.len() {
            return false;
        }
        let n = self.size(inner);
        let one = |s: &[usize]| s[outer] == s[inner] * n;
        self.reads.iter().all(|r| one(&r.strides) && r.at.as_ref().is_none_or(|at| one(&at.strides)))
            && (outer >= self.kept.len() || self.writes.iter().all(|w| one(&w.strides)))
    }

    fn merge(&mut self, outer: usize) {
        let n = self.size(outer);
        let inner = outer + 1;
        if inner < self.kept.len() {
            self.kept[inner] *= n;
        } else {
            self.folded[inner - self.kept.len()] *= n;
        }
        // The outer axis is dropped whatever its size: the inner one now walks both.
        self.drop_axis(outer);
    }
}

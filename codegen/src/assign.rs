//! A place for each buffer: two whose lives do not meet may share bytes of one arena.

use crate::program::{BufferPlan, LaunchPlan, Place, Port};
use crate::{Error, Target};
use std::ops::Range;

/// Places every arena buffer; yields the bytes of each slab.
///
/// A slab is at most what the target may bind; where the whole arena fits one slab, there is one.
///
/// Errors: `Limit` for a buffer larger than a slab may be.
pub fn assign(
    buffers: &mut [BufferPlan],
    launches: &[LaunchPlan],
    horizontals: &[Range<usize>],
    results: &[Port],
    target: &Target,
) -> Result<Vec<usize>, Error> {
    let lives = lives(buffers, launches, horizontals, results);
    let mut order: Vec<usize> =
        (0..buffers.len()).filter(|b| buffers[*b].place != Place::Own && lives[*b].is_some()).collect();
    order.sort_by_key(|b| (std::cmp::Reverse(buffers[*b].ty.bytes()), *b));
    let mut slabs: Vec<usize> = vec![];
    let mut placed: Vec<(usize, usize, usize)> = vec![];
    for b in order {
        let need = buffers[b].ty.bytes().max(1).next_multiple_of(target.align);
        let (slab, offset) = first_fit(b, need, &placed, &lives, buffers, slabs.len(), target);
        if offset + need > target.max_binding_bytes {
            return Err(Error::Limit {
                name: "bytes a buffer",
                what: format!("a workspace buffer of {}", buffers[b].ty),
                need,
                have: target.max_binding_bytes,
                target: target.name.clone(),
                mend: "take fewer tokens or tiles a chunk",
            });
        }
        if slab == slabs.len() {
            slabs.push(0);
        }
        slabs[slab] = slabs[slab].max(offset + need);
        buffers[b].place = Place::Arena { slab, offset };
        placed.push((b, slab, offset));
    }
    Ok(slabs)
}

/// First and last launch that touches each buffer; results live to the end. Launches side by side touch theirs all at once.
pub(crate) fn lives(
    buffers: &[BufferPlan],
    launches: &[LaunchPlan],
    horizontals: &[Range<usize>],
    results: &[Port],
) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; buffers.len()];
    let mut ranges = horizontals.iter().peekable();
    for (at, l) in launches.iter().enumerate() {
        while ranges.next_if(|r| r.end <= at).is_some() {}
        let (start, last) = ranges.peek().filter(|r| r.contains(&at)).map_or((at, at), |r| (r.start, r.end - 1));
        for b in l.buffers() {
            let first = lives[b].map_or(start, |x| x.0);
            lives[b] = Some((first, last));
        }
    }
    for r in results {
        let first = lives[r.buffer].map_or(0, |x| x.0);
        lives[r.buffer] = Some((first, usize::MAX));
    }
    lives
}

/// The lowest place where nothing alive at the same time lies; a new slab when none has room.
fn first_fit(
    b: usize,
    need: usize,
    placed: &[(usize, usize, usize)],
    lives: &[Option<(usize, usize)>],
    buffers: &[BufferPlan],
    slabs: usize,
    target: &Target,
) -> (usize, usize) {
    let meets = |c: usize| matches!((lives[b], lives[c]), (Some((s, e)), Some((t, u))) if s <= u && t <= e);
    for slab in 0..slabs {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(c, s, _)| *s == slab && meets(*c))
            .map(|(c, _, o)| (*o, o + buffers[*c].ty.bytes().max(1).next_multiple_of(target.align)))
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (start, end) in taken {
            if at + need <= start {
                break;
            }
            at = at.max(end);
        }
        if at + need <= target.max_binding_bytes {
            return (slab, at);
        }
    }
    (slabs, 0)
}

#[cfg(test)]
mod tests {
    use super::lives;
    use crate::program::{BufferPlan, LaunchPlan, Memory, Place};
    use omchat_ir::{Dtype, Type};

    #[test]
    fn what_is_touched_side_by_side_lives_at_once() {
        let launch = |from, to| LaunchPlan {
            chosen: 0,
            operands: vec![from],
            results: vec![to],
            scratch: None,
            label: String::new(),
        };
        // The first reads 0, the next two stand side by side, the last reads what the first of them wrote.
        let launches = [launch(0, 1), launch(1, 2), launch(3, 4), launch(2, 5)];
        let buffer = BufferPlan { ty: Type::new(Dtype::F32, [1]), memory: Memory::Workspace, place: Place::Own };
        let (buffers, side) = (vec![buffer; 6], std::slice::from_ref(&(1..3)));
        let apart = lives(&buffers, &launches, &[], &[]);
        assert_eq!(apart[1..5], [Some((0, 1)), Some((1, 3)), Some((2, 2)), Some((2, 2))]);
        let beside = lives(&buffers, &launches, side, &[]);
        assert_eq!(beside[..], [Some((0, 0)), Some((0, 2)), Some((1, 3)), Some((1, 2)), Some((1, 2)), Some((3, 3))]);
    }
}

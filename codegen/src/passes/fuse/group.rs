//! Groups in the making, and which of them must run before which.

use super::super::facts::{Facts, Kind, is_turn};
use omchat_ir::{Action, Function, Node, Op, Value};

struct Group {
    nodes: Vec<usize>,
    /// Shape of what a joining node must have.
    shape: Vec<usize>,
    /// Whether it has a fold.
    anchored: bool,
    /// Whether no more nodes may join.
    closed: bool,
    /// Groups that run before, transitively: a bit each.
    before: Vec<u64>,
    /// Whether another group has this one in `before`; most never do while they grow, which saves a search.
    ahead: bool,
}

/// All groups of an entry.
pub(super) struct Groups<'a> {
    f: &'a Function,
    facts: &'a Facts,
    max_bindings: usize,
    /// The group of each node.
    of: Vec<Option<usize>>,
    groups: Vec<Group>,
}

/// Whether bit `i` is set.
fn has(bits: &[u64], i: usize) -> bool {
    bits.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1)
}

/// The bits that are set.
fn members(bits: &[u64]) -> impl Iterator<Item = usize> {
    let words = bits.iter().enumerate().filter(|(_, w)| **w != 0);
    words.flat_map(|(i, w)| (0..64).filter(move |b| w >> b & 1 == 1).map(move |b| i * 64 + b))
}

fn set(bits: &mut Vec<u64>, i: usize) {
    if bits.len() <= i / 64 {
        bits.resize(i / 64 + 1, 0);
    }
    bits[i / 64] |= 1 << (i % 64);
}

fn clear(bits: &mut [u64], i: usize) {
    if let Some(w) = bits.get_mut(i / 64) {
        *w &= !(1 << (i % 64));
    }
}

fn unite(bits: &mut Vec<u64>, more: &[u64]) {
    if bits.len() < more.len() {
        bits.resize(more.len(), 0);
    }
    bits.iter_mut().zip(more).for_each(|(a, b)| *a |= b);
}

impl<'a> Groups<'a> {
    pub(super) fn new(f: &'a Function, facts: &'a Facts, max_bindings: usize) -> Groups<'a> {
        Groups { f, facts, max_bindings, of: vec![None; f.nodes.len()], groups: vec![] }
    }

    pub(super) fn place_alone(&mut self, n: usize) {
        let g = self.open(n, vec![]);
        self.groups[g].closed = true;
    }

    pub(super) fn place_fold(&mut self, n: usize, node: &Node) {
        let shape = self.f.ty(node.results[0]).shape.clone();
        if let Some(g) = self.prologue(n, node) {
            self.join(g, n);
            self.groups[g].shape = shape;
            self.groups[g].anchored = true;
            return;
        }
        let g = self.open(n, shape);
        self.groups[g].anchored = true;
    }

    /// The pointwise group that feeds a reduce and nothing else.
    fn prologue(&self, n: usize, node: &Node) -> Option<usize> {
        let [x] = node.operands[..] else { return None };
        let g = self.group_of(x)?;
        let group = &self.groups[g];
        let alone = self.outputs(&group.nodes, Some(n)).is_empty();
        (!group.anchored
            && !group.closed
            && alone
            && !self.facts.result[x.0 as usize]
            && self.fits(&[&group.nodes[..], &[n]]))
        .then_some(g)
    }

    pub(super) fn place_point(&mut self, n: usize, node: &Node) {
        let shape = self.f.ty(node.results[0]).shape.clone();
        let mut near: Vec<usize> = node.operands.iter().filter_map(|o| self.group_of(*o)).collect();
        near.sort_unstable_by(|a, b| b.cmp(a));
        near.dedup();
        let host = near.iter().copied().find(|g| self.may_join(*g, n, &shape));
        let Some(mut g) = host else {
            self.open(n, shape);
            return;
        };
        self.join(g, n);
        for other in near {
            if other != g && self.may_merge(g, other) {
                g = self.merge(g, other);
            }
        }
    }

    pub(super) fn place_concat(&mut self, n: usize, node: &Node) {
        let mut near: Vec<usize> = node.operands.iter().filter_map(|o| self.group_of(*o)).collect();
        let shape = self.f.ty(node.operands[0]).shape.clone();
        let own = node.operands.iter().all(|o| {
            self.group_of(*o).is_some()
                && self.f.ty(*o).shape == shape
                && self.facts.users[o.0 as usize] == [n]
                && !self.facts.result[o.0 as usize]
        });
        let distinct = node.operands.iter().enumerate().all(|(i, o)| !node.operands[..i].contains(o));
        near.sort_unstable();
        near.dedup();
        if !own || !distinct || near.iter().any(|g| self.groups[*g].closed || self.groups[*g].shape != shape) {
            return self.place_alone(n);
        }
        let mut g = near[0];
        for other in near.into_iter().skip(1) {
            if !self.may_merge(g, other) {
                return self.place_alone(n);
            }
            g = self.merge(g, other);
        }
        self.join(g, n);
        self.groups[g].closed = true;
    }

    pub(super) fn place_update(&mut self, n: usize, node: &Node) {
        match self.updater(n, node) {
            Some(g) => {
                self.join(g, n);
                self.groups[g].closed = true;
            }
            None => self.place_alone(n),
        }
    }

    /// The group that may write its only result straight into the buffer that an update would copy it to.
    fn updater(&self, n: usize, node: &Node) -> Option<usize> {
        let [onto, mut part, _] = node.operands[..] else { return None };
        let (mut reader, only) = (n, |v: Value, reader: usize| {
            self.facts.users[v.0 as usize] == [reader] && !self.facts.result[v.0 as usize]
        });
        while self.facts.free(part) {
            let maker = self.facts.maker[part.0 as usize]?;
            if !only(part, reader) || !is_turn(self.f, &self.f.nodes[maker]) {
                return None;
            }
            (part, reader) = (self.f.nodes[maker].operands[0], maker);
        }
        let (g, maker) = (self.group_of(part)?, self.facts.maker[part.0 as usize]?);
        let group = &self.groups[g];
        let whole = match self.facts.kinds[maker] {
            Kind::Point | Kind::Fold => !group.closed && group.shape == self.f.ty(part).shape,
            // One that stands alone copies values that others made.
            Kind::Concat => group.nodes.len() > 1,
            _ => false,
        };
        let reads = |v: Value| group.nodes.iter().any(|m| self.reads(*m).contains(&v));
        (whole
            && only(part, reader)
            && self.outputs(&group.nodes, Some(reader)).is_empty()
            && !self.facts.free(onto)
            && !reads(onto)
            && self.needs(n).iter().all(|h| *h == g || !has(&self.groups[*h].before, g))
            && self.fits(&[&group.nodes[..], &[n]]))
        .then_some(g)
    }

    fn group_of(&self, v: Value) -> Option<usize> {
        self.facts.maker[v.0 as usize].and_then(|n| self.of[n])
    }

    fn open(&mut self, n: usize, shape: Vec<usize>) -> usize {
        self.groups.push(Group { nodes: vec![], shape, anchored: false, closed: false, before: vec![], ahead: false });
        let g = self.groups.len() - 1;
        self.join(g, n);
        g
    }

    fn join(&mut self, g: usize, n: usize) {
        self.of[n] = Some(g);
        self.groups[g].nodes.push(n);
        for h in self.needs(n) {
            if h != g && !has(&self.groups[g].before, h) {
                let mut more = self.groups[h].before.clone();
                set(&mut more, h);
                self.groups[h].ahead = true;
                self.spread(g, &more);
            }
        }
    }

    /// Adds to what runs before `g`, and before all that run after `g`.
    fn spread(&mut self, g: usize, more: &[u64]) {
        unite(&mut self.groups[g].before, more);
        if self.groups[g].ahead {
            for group in self.groups.iter_mut().filter(|k| has(&k.before, g)) {
                unite(&mut group.before, more);
            }
        }
    }

    /// Values in memory that a node reads.
    fn reads(&self, n: usize) -> Vec<Value> {
        let mut bases = vec![];
        self.f.nodes[n].operands.iter().for_each(|o| self.facts.bases(self.f, *o, &mut bases));
        bases
    }

    /// What a node may bind: the values in memory that it reads, and of those that are copied to their readers the ones that
    /// others need in memory, where they are read then.
    fn binds(&self, n: usize) -> Vec<Value> {
        let mut out = self.reads(n);
        let mut open = self.f.nodes[n].operands.clone();
        while let Some(v) = open.pop() {
            if !self.facts.free(v) {
                continue;
            }
            let stores = |u: &usize| {
                matches!(self.facts.kinds[*u], Kind::Alone | Kind::Update)
                    || matches!(self.f.nodes[*u].action, Action::Op(Op::Gather(_)))
            };
            if self.facts.result[v.0 as usize] || self.facts.users[v.0 as usize].iter().any(stores) {
                out.push(v);
            }
            open.extend(self.facts.maker[v.0 as usize].iter().flat_map(|m| self.f.nodes[*m].operands.iter().copied()));
        }
        out
    }

    /// Groups whose results a node reads.
    fn needs(&self, n: usize) -> Vec<usize> {
        self.reads(n).into_iter().filter_map(|v| self.group_of(v)).collect()
    }

    fn may_join(&self, g: usize, n: usize, shape: &[usize]) -> bool {
        let group = &self.groups[g];
        !group.closed
            && group.shape == shape
            && self.reads_in_step(n, &[g])
            && self.needs(n).iter().all(|h| *h == g || !has(&self.groups[*h].before, g))
            && self.fits(&[&group.nodes[..], &[n]])
    }

    fn may_merge(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.groups[a], &self.groups[b]);
        let between = |p: usize, q: usize| {
            self.groups[p].ahead && members(&self.groups[q].before).any(|k| k != p && has(&self.groups[k].before, p))
        };
        // What a fold reads cannot join what follows it.
        let folds_what_joins = (x.anchored && self.feeds(b, a)) || (y.anchored && self.feeds(a, b));
        let one_shape = !x.closed && !y.closed && x.shape == y.shape;
        let two_folds = x.anchored && y.anchored;
        if !one_shape || two_folds || folds_what_joins || between(a, b) || between(b, a) {
            return false;
        }
        x.nodes.iter().chain(&y.nodes).all(|n| self.reads_in_step(*n, &[a, b]))
            && self.fits(&[&x.nodes[..], &y.nodes[..]])
    }

    /// Whether group `b` reads what group `a` makes.
    fn feeds(&self, a: usize, b: usize) -> bool {
        has(&self.groups[b].before, a)
    }

    /// Whether a node reads results of those groups only element by element.
    fn reads_in_step(&self, n: usize, groups: &[usize]) -> bool {
        let node = &self.f.nodes[n];
        let inside = |v: Value| self.group_of(v).is_some_and(|g| groups.contains(&g));
        let shape = &self.f.ty(node.results[0]).shape;
        node.operands.iter().enumerate().all(|(i, o)| {
            if self.facts.free(*o) {
                let mut bases = vec![];
                self.facts.bases(self.f, *o, &mut bases);
                return !bases.into_iter().any(inside);
            }
            if !inside(*o) {
                return true;
            }
            match &node.action {
                Action::Op(Op::Pointwise(p)) => {
                    let types: Vec<_> = node.operands.iter().map(|v| self.f.ty(*v)).collect();
                    self.f.ty(*o).shape == *shape && p.views(&types)[i] == omchat_ir::strides(shape)
                }
                Action::Op(Op::Cast(_)) => true,
                // A fold reads its own prologue.
                Action::Op(Op::Reduce(_) | Op::ArgMax(_)) => true,
                _ => false,
            }
        })
    }

    fn merge(&mut self, a: usize, b: usize) -> usize {
        let moved = std::mem::take(&mut self.groups[b].nodes);
        for n in &moved {
            self.of[*n] = Some(a);
        }
        self.groups[b].closed = true;
        self.groups[a].anchored |= self.groups[b].anchored;
        self.groups[a].nodes.extend(moved);
        self.groups[a].nodes.sort_unstable();
        let more = self.groups[b].before.clone();
        if self.groups[b].ahead {
            self.groups[a].ahead = true;
            self.groups.iter_mut().filter(|g| has(&g.before, b)).for_each(|g| set(&mut g.before, a));
        }
        self.spread(a, &more);
        if self.groups[a].ahead {
            let own = self.groups[a].before.clone();
            self.spread(a, &own);
        }
        if self.groups[b].ahead {
            self.groups.iter_mut().for_each(|g| clear(&mut g.before, b));
        }
        clear(&mut self.groups[a].before, a);
        a
    }

    /// Values of those nodes that nodes outside (other than `except`) or the caller read.
    fn outputs(&self, nodes: &[usize], except: Option<usize>) -> Vec<Value> {
        nodes
            .iter()
            .flat_map(|n| self.f.nodes[*n].results.iter().copied())
            .filter(|v| {
                self.facts.result[v.0 as usize]
                    || self.facts.users[v.0 as usize].iter().any(|u| !nodes.contains(u) && Some(*u) != except)
            })
            .collect()
    }

    /// Whether a kernel can bind what those nodes read and write together.
    fn fits(&self, parts: &[&[usize]]) -> bool {
        let nodes = parts.concat();
        let mut reads = vec![];
        for n in &nodes {
            let inside = |v: &Value| self.facts.maker[v.0 as usize].is_some_and(|m| nodes.contains(&m));
            reads.extend(self.binds(*n).into_iter().filter(|v| !inside(v)));
        }
        reads.sort_unstable();
        reads.dedup();
        reads.len() + self.outputs(&nodes, None).len() <= self.max_bindings
    }

    /// The groups' nodes in an order that runs: by their last node, and before each what it still needs. So nothing runs
    /// long before it is read: what a backward pass computes again is computed late, and a group that was joined late
    /// does not pull what it needs to an early place.
    pub(super) fn ordered(self) -> Vec<Vec<usize>> {
        let mut all: Vec<usize> = (0..self.groups.len()).filter(|g| !self.groups[*g].nodes.is_empty()).collect();
        all.sort_by_key(|g| self.groups[*g].nodes.iter().max().copied());
        let mut placed = vec![false; self.groups.len()];
        let mut out = vec![];
        let mut open: Vec<usize> = all.into_iter().rev().collect();
        while let Some(g) = open.last().copied() {
            if placed[g] {
                open.pop();
                continue;
            }
            let mut needs: Vec<usize> = self.groups[g].nodes.iter().flat_map(|n| self.needs(*n)).collect();
            needs.retain(|h| *h != g && !placed[*h]);
            needs.sort_by_key(|h| std::cmp::Reverse(self.groups[*h].nodes.iter().max().copied()));
            needs.dedup();
            if needs.is_empty() {
                placed[g] = true;
                open.pop();
                let mut nodes = self.groups[g].nodes.clone();
                nodes.sort_unstable();
                out.push(nodes);
            } else {
                open.extend(needs);
            }
        }
        out
    }
}

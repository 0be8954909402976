//! What a program's memory is for where it holds most: weights, gradients, optimizer state, activations, caches.
//!
//! Names tell: `adam.NAME` is optimizer state, `cache.NAME` a cache, a state with moments `adam.m.NAME` a weight in
//! training, and a value `d.NAME` of a parameter its gradient. What is made before the first cotangent and read after
//! it is an activation.

use crate::assign::lives;
use crate::program::{Memory, Place, Program};
use std::collections::HashSet;
use std::fmt;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Parameters, trained or not.
    Weight,
    /// Cotangents of parameters.
    Gradient,
    /// Moments.
    Optimizer,
    /// What the forward keeps for the backward.
    Activation,
    /// Keys and values of a sequence.
    Cache,
    /// Other states.
    State,
    /// Given at each run.
    Input,
    /// Yielded by each run.
    Output,
    /// The rest, between launches.
    Workspace,
}

impl Class {
    /// The name that is printed.
    pub fn name(self) -> &'static str {
        match self {
            Class::Weight => "weights",
            Class::Gradient => "gradients",
            Class::Optimizer => "optimizer state",
            Class::Activation => "activations",
            Class::Cache => "cache",
            Class::State => "other state",
            Class::Input => "inputs",
            Class::Output => "outputs",
            Class::Workspace => "workspace",
        }
    }
}

/// A program's memory at the launch where most of its arena is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peak {
    /// The launch, by its place in the program.
    pub launch: usize,
    /// The values that it yields.
    pub label: String,
    /// Bytes of each class that is there.
    pub classes: Vec<(Class, usize)>,
    /// Bytes of the arena that are alive: no arena can be smaller.
    pub live: usize,
    /// Bytes of the arena.
    pub arena: usize,
}

impl Program {
    /// Where the program holds most, and what for.
    pub fn peak(&self) -> Peak {
        let lives = lives(&self.buffers, &self.launches, &self.horizontals, &self.results);
        let bytes = |b: usize| self.buffers[b].ty.bytes().max(1).next_multiple_of(self.target.align);
        let alive = |b: usize, at: usize| {
            self.buffers[b].place != Place::Own && lives[b].is_some_and(|(s, e)| s <= at && at <= e)
        };
        // Bytes that begin and end at each launch, summed up as the launches go by.
        let mut change = vec![0i64; self.launches.len() + 1];
        for b in (0..self.buffers.len()).filter(|b| self.buffers[*b].place != Place::Own) {
            let Some((start, end)) = lives[b] else { continue };
            change[start] += bytes(b) as i64;
            if let Some(c) = end.checked_add(1).and_then(|e| change.get_mut(e)) {
                *c -= bytes(b) as i64;
            }
        }
        let (mut now, mut live, mut launch) = (0, 0, 0);
        for (at, c) in change.iter().enumerate().take(self.launches.len()) {
            now += c;
            if now > live {
                (live, launch) = (now, at);
            }
        }
        let names = Names::of(self);
        let mut classes: Vec<(Class, usize)> = vec![];
        for b in (0..self.buffers.len()).filter(|b| self.buffers[*b].place == Place::Own || alive(*b, launch)) {
            let class = names.class(self, b, launch, lives[b]);
            match classes.iter_mut().find(|c| c.0 == class) {
                Some(c) => c.1 += self.buffers[b].ty.bytes(),
                None => classes.push((class, self.buffers[b].ty.bytes())),
            }
        }
        classes.sort_unstable();
        Peak {
            launch,
            label: self.launches.get(launch).map_or(String::new(), |l| l.label.clone()),
            classes,
            live: live as usize,
            arena: self.slabs.iter().sum(),
        }
    }

    /// Whether it differentiates: some value is a cotangent.
    pub fn trains(&self) -> bool {
        self.launches.iter().any(|l| l.label.starts_with("%d."))
    }
}

/// What the names of a program tell.
struct Names<'a> {
    params: HashSet<&'a str>,
    /// The first launch that yields a cotangent.
    backward: usize,
}

impl<'a> Names<'a> {
    fn of(p: &'a Program) -> Names<'a> {
        let backward = p.launches.iter().position(|l| l.label.starts_with("%d.")).unwrap_or(usize::MAX);
        Names { params: p.params.iter().map(|q| q.name.as_str()).collect(), backward }
    }

    fn class(&self, p: &Program, b: usize, at: usize, life: Option<(usize, usize)>) -> Class {
        match p.buffers[b].memory {
            Memory::Weight => Class::Weight,
            Memory::Input => Class::Input,
            Memory::State => self.state(p, b),
            Memory::Output | Memory::Workspace => {
                if self.holds_gradient(p, b, at) {
                    return Class::Gradient;
                }
                match (p.buffers[b].memory, life) {
                    (Memory::Output, _) => Class::Output,
                    (_, Some((start, end))) if start < self.backward && end >= self.backward => Class::Activation,
                    _ => Class::Workspace,
                }
            }
        }
    }

    fn state(&self, p: &Program, b: usize) -> Class {
        let name = p.params.iter().find(|q| q.buffer == b).map_or("", |q| q.name.as_str());
        if name.starts_with("adam.") {
            Class::Optimizer
        } else if name.starts_with("cache.") {
            Class::Cache
        } else if self.params.contains(format!("adam.m.{name}").as_str()) {
            Class::Weight
        } else {
            Class::State
        }
    }

    /// Whether the value that a buffer holds after a launch is the cotangent of a parameter.
    fn holds_gradient(&self, p: &Program, b: usize, at: usize) -> bool {
        let before = p.launches[..(at + 1).min(p.launches.len())].iter().rev();
        let Some(l) = before.into_iter().find(|l| l.results.contains(&b)) else { return false };
        let names = l.label.split(", ").zip(&l.results);
        names.filter(|(_, r)| **r == b).any(|(name, _)| {
            let name = name.trim_start_matches('%').strip_prefix("d.").unwrap_or("");
            let whole = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('.');
            self.params.contains(name) || self.params.contains(whole)
        })
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  most is held at launch {}, {}", self.launch + 1, self.label)?;
        for (class, bytes) in &self.classes {
            writeln!(f, "    {:<16} {bytes:>14} bytes", class.name())?;
        }
        writeln!(f, "    the arena is {} bytes for {} alive", self.arena, self.live)
    }
}

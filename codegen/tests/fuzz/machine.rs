//! A program run launch by launch in doubles, over memory that starts as no number: a read before a write, a view
//! that leaves its buffer, and a buffer that another one spoils all show.

use omchat_codegen::{Body, Fold, Kind, Nest, Place, Program, Step, Work};
use omchat_ir::{Dtype, Mode, Module, Role, Scalar, Tensor, interpret};
use std::collections::BTreeSet;

/// Two bytes a cell; an element lies in its first.
struct Memory<'a> {
    p: &'a Program,
    own: Vec<Vec<f64>>,
    slabs: Vec<Vec<f64>>,
}

impl Memory<'_> {
    fn cell(&mut self, b: usize, i: usize) -> Result<(&mut f64, Option<&mut f64>), String> {
        let plan = &self.p.buffers[b];
        if i >= plan.ty.elements() {
            return Err(format!("element {i} of buffer {b}, which is {}", plan.ty));
        }
        let wide = plan.ty.dtype.bytes() / 2;
        let (cells, at) = match plan.place {
            Place::Own => (&mut self.own[b], i * wide),
            Place::Arena { slab, offset } => (&mut self.slabs[slab], offset / 2 + i * wide),
        };
        let (head, tail) = cells
            .get_mut(at..at + wide)
            .ok_or_else(|| format!("element {i} of buffer {b} lies outside its slab"))?
            .split_at_mut(1);
        Ok((&mut head[0], tail.first_mut()))
    }

    fn get(&mut self, b: usize, i: usize) -> Result<f64, String> {
        self.cell(b, i).map(|c| *c.0)
    }

    fn set(&mut self, b: usize, i: usize, x: f64) -> Result<(), String> {
        let (head, tail) = self.cell(b, i)?;
        *head = x;
        if let Some(t) = tail {
            *t = f64::NAN;
        }
        Ok(())
    }

    /// The bytes of a buffer: where they lie, first, and past the last.
    fn span(&self, b: usize) -> (usize, usize, usize) {
        let bytes = self.p.buffers[b].ty.bytes();
        match self.p.buffers[b].place {
            Place::Own => (usize::MAX - b, 0, bytes),
            Place::Arena { slab, offset } => (slab, offset, offset + bytes),
        }
    }

    fn overlap(&self, a: usize, b: usize) -> bool {
        let (x, y) = (self.span(a), self.span(b));
        x.0 == y.0 && x.1 < y.2 && y.1 < x.2
    }
}

/// The results of a program: those of its entry, states last.
pub fn run(p: &Program, module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let cells = |bytes: usize| vec![f64::NAN; bytes.div_ceil(2)];
    let mut m = Memory {
        p,
        own: p.buffers.iter().map(|b| if b.place == Place::Own { cells(b.ty.bytes()) } else { vec![] }).collect(),
        slabs: p.slabs.iter().map(|n| cells(*n)).collect(),
    };
    for (port, t) in p.params.iter().zip(inputs) {
        for (i, x) in t.data.iter().enumerate() {
            m.set(port.buffer, i, *x)?;
        }
    }
    for l in &p.launches {
        let work = &p.chosen[l.chosen].work;
        launch(&mut m, module, work, &l.operands, &l.results).map_err(|e| format!("{} = {work:?}: {e}", l.label))?;
    }
    for (port, t) in p.params.iter().zip(inputs).filter(|(port, _)| port.role != Role::State) {
        for (i, x) in t.data.iter().enumerate() {
            let have = m.get(port.buffer, i)?;
            if have.to_bits() != x.to_bits() {
                return Err(format!("%{} was written over", port.name));
            }
        }
    }
    p.results
        .iter()
        .map(|r| {
            let data = (0..r.ty.elements()).map(|i| m.get(r.buffer, i)).collect::<Result<_, _>>()?;
            Tensor::new(r.ty.clone(), data)
        })
        .collect()
}

fn launch(m: &mut Memory, module: &Module, work: &Work, operands: &[usize], results: &[usize]) -> Result<(), String> {
    match work {
        Work::Nest(n) => nest(m, n, operands, results),
        Work::KthLargest { rows, width, k } => {
            for r in 0..*rows {
                let mut row =
                    (0..*width).map(|i| m.get(operands[0], r * width + i)).collect::<Result<Vec<f64>, _>>()?;
                row.sort_by(|a, b| b.total_cmp(a));
                m.set(results[0], r, row[k - 1])?;
            }
            Ok(())
        }
        Work::ScatterAdd { height, width, tokens, ids, rows, .. } => {
            let (ids, rows) = (operands[*ids], operands[*rows]);
            if let Some(b) = [ids, rows].iter().find(|b| m.overlap(**b, results[0])) {
                return Err(format!("it reads buffer {b} and adds to buffer {}, which share bytes", results[0]));
            }
            for t in 0..*tokens {
                let id = m.get(ids, t)?;
                for c in (0..*width).filter(|_| id >= 0.0 && id < *height as f64) {
                    let at = id as usize * width + c;
                    let sum = m.get(results[0], at)? + m.get(rows, t * width + c)?;
                    m.set(results[0], at, sum)?;
                }
            }
            Ok(())
        }
        Work::Prefetch { .. } => Ok(()),
        Work::Collective(c) => Err(format!("{} of {} ranks, and this machine is one", c.name(), c.ranks)),
        Work::Function { name, binds, operands: types, .. } => {
            let f = module.find(name, binds).ok_or("a function that is not in the module")?;
            let mut args = vec![];
            for (b, t) in operands.iter().zip(types) {
                let data = (0..t.elements()).map(|i| m.get(*b, i)).collect::<Result<_, _>>()?;
                args.push(Tensor::new(t.clone(), data)?);
            }
            let out = interpret(module, f, vec![args], Mode::Exact).map_err(|e| e.to_string())?.remove(0);
            for (b, t) in results.iter().zip(out) {
                for (i, x) in t.data.into_iter().enumerate() {
                    m.set(*b, i, x)?;
                }
            }
            Ok(())
        }
    }
}

fn each(sizes: &[usize], mut f: impl FnMut(&[usize]) -> Result<(), String>) -> Result<(), String> {
    if sizes.contains(&0) {
        return Ok(());
    }
    let mut at = vec![0; sizes.len()];
    loop {
        f(&at)?;
        let Some(axis) = (0..sizes.len()).rev().find(|a| at[*a] + 1 < sizes[*a]) else { return Ok(()) };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

fn place(offset: usize, strides: &[usize], at: &[usize]) -> usize {
    offset + strides.iter().zip(at).map(|(s, i)| s * i).sum::<usize>()
}

fn nest(m: &mut Memory, n: &Nest, operands: &[usize], results: &[usize]) -> Result<(), String> {
    let operand = |i: usize| operands.get(i).copied().ok_or_else(|| format!("operand {i} of {}", operands.len()));
    let mut read = vec![];
    for r in &n.reads {
        read.push(operand(r.operand)?);
        if r.at.is_some() || r.strides.len() != n.kept.len() + n.folded.len() {
            read.push(operand(r.at.as_ref().ok_or("a view of other axes")?.operand)?);
        }
        if m.p.buffers[operand(r.operand)?].ty.dtype != r.dtype {
            return Err(format!("operand {} is not {}", r.operand, r.dtype));
        }
    }
    let mut starts = vec![];
    for w in &n.writes {
        let mut start = w.offset;
        if let Some(s) = &w.at {
            let b = operand(s.operand)?;
            read.push(b);
            start += (m.get(b, 0)?.clamp(0.0, s.last as f64) as usize) * s.stride;
        }
        starts.push(start);
        // Written over in step: each point may read the element that it writes, and no other.
        if let Some(b) = read.iter().find(|b| m.overlap(**b, results[w.result]) && **b != results[w.result]) {
            return Err(format!("it reads buffer {b} and writes buffer {}, which share bytes", results[w.result]));
        }
    }
    let shared: Vec<usize> = results.iter().copied().filter(|b| read.contains(b)).collect();
    let mut written = BTreeSet::new();
    each(&n.kept, |kept| {
        let mut hot: Vec<(usize, Option<usize>)> = shared.iter().map(|b| (*b, None)).collect();
        let whole = n.fold.is_some() && n.body.kind(n.body.results[0]) == Kind::Int;
        let mut sum = match n.fold {
            Some(Fold::Max) if whole => f64::from(i32::MIN),
            Some(Fold::Max) => -1e30,
            _ => 0.0,
        };
        let (mut best, mut count) = (f64::NAN, 0.0);
        if let Some(fold) = n.fold {
            each(&n.folded, |folded| {
                let at = [kept, folded].concat();
                let x = body(m, n, &n.body, (operands, &hot), &at, 0.0)?[0];
                match fold {
                    Fold::Sum if whole => sum = f64::from((sum as i32).wrapping_add(x as i32)),
                    Fold::Sum => sum += x,
                    Fold::Max => sum = f64::max(sum, x),
                    Fold::ArgMax => {
                        if best.is_nan() && count == 0.0 || x > best {
                            (best, sum) = (x, count);
                        }
                        count += 1.0;
                    }
                }
                Ok(())
            })?;
        }
        let last = if n.fold.is_some() { &n.epilogue } else { &n.body };
        let at = [kept, &vec![0; n.folded.len()]].concat();
        for (b, only) in &mut hot {
            let mut own = n.writes.iter().zip(&starts).filter(|(w, _)| results[w.result] == *b);
            *only = own.next().map(|(w, start)| place(*start, &w.strides, kept));
        }
        let values = body(m, n, last, (operands, &hot), &at, sum)?;
        for ((w, start), x) in n.writes.iter().zip(&starts).zip(values) {
            let i = place(*start, &w.strides, kept);
            if !written.insert((w.result, i)) {
                return Err(format!("element {i} of result {} is written twice", w.result));
            }
            m.set(results[w.result], i, x)?;
        }
        Ok(())
    })
}

/// Operands' buffers, and of those that are written in this nest the one element that may be read.
type Readable<'a> = (&'a [usize], &'a [(usize, Option<usize>)]);

fn body(m: &mut Memory, n: &Nest, b: &Body, from: Readable, at: &[usize], folded: f64) -> Result<Vec<f64>, String> {
    let (operands, hot) = from;
    let fetch = |m: &mut Memory, buffer: usize, i: usize| match hot.iter().find(|h| h.0 == buffer) {
        Some((_, only)) if *only != Some(i) => {
            Err(format!("a point reads element {i} of buffer {buffer}, which another point writes over"))
        }
        _ => m.get(buffer, i),
    };
    let mut values: Vec<f64> = vec![];
    for (s, step) in b.steps.iter().enumerate() {
        let x = match step {
            Step::Read { read, .. } => {
                let r = &n.reads[*read];
                let mut i = place(r.offset, &r.strides, at);
                let mut inside = true;
                if let Some(a) = &r.at {
                    let id = fetch(m, operands[a.operand], place(a.offset, &a.strides, at))?;
                    inside = id >= 0.0 && id < a.size as f64;
                    i += if inside { id as usize * a.stride } else { 0 };
                }
                if inside { fetch(m, operands[r.operand], i)? } else { 0.0 }
            }
            Step::Folded { .. } => folded,
            Step::Index { axis } => at[*axis] as f64,
            Step::Float { bits } => f64::from(f32::from_bits(*bits)),
            Step::Int { value } => f64::from(*value),
            Step::Apply { f, args, of } => {
                let x: Vec<f64> = args.iter().map(|a| values[*a]).collect();
                let number = f.class() == omchat_ir::Class::Number;
                if *f == Scalar::Select {
                    if b.kind(args[1]) != b.kind(args[2]) {
                        return Err("a select of two kinds".into());
                    }
                } else if args.iter().any(|a| b.kind(*a) != b.kind(args[0])) {
                    return Err(format!("{} of two kinds", f.name()));
                }
                if *of == Kind::Int && number { f.value_i32(&x) } else { f.value(&x) }
            }
            Step::Convert { arg, to: Kind::Int } => Dtype::I32.round(values[*arg]),
            Step::Convert { arg, .. } | Step::Round { arg, .. } => values[*arg],
            Step::Truth { arg } => Dtype::Bool.round(values[*arg]),
        };
        if b.kind(s) == Kind::Int && x.fract() != 0.0 {
            return Err(format!("step {s} is an integer and yields {x}"));
        }
        values.push(x);
    }
    Ok(b.results.iter().map(|r| values[*r]).collect())
}

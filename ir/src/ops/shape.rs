//! Ops that move elements and compute nothing.

use super::{Attrs, Cotangents, FoldKind, OpDef, Reduce, arity, axes_of, each};
use crate::axes::{self, Axes};
use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::tensor::{Tensor, offsets, view};
use crate::types::{Type, strides};
use std::collections::BTreeMap;

/// `%y = rearrange %x "b t (h d) -> b h t d" h=4` — transposes, splits, merges and repeats axes.
///
/// Shapes: a group is split or merged row-major. An axis only on the right repeats the operand; its size
/// is given. An axis on the left must stand on the right, unless its size is 1.
/// Errors: `axes`, `dim` if a group does not divide, `attribute` if a size is missing.
/// Source: einops `rearrange` and `repeat`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rearrange {
    /// From which axes to which.
    pub axes: Axes,
    /// Sizes that the operand does not tell.
    pub sizes: BTreeMap<String, usize>,
}

/// The elementary axes of a `rearrange`: the result's words, their sizes, and the operand's strides over them.
pub struct Moves {
    /// Sizes of the result's elementary axes, outermost first.
    pub sizes: Vec<usize>,
    /// The operand's stride along each; 0 where it repeats.
    pub strides: Vec<usize>,
    /// The result's shape.
    pub shape: Vec<usize>,
}

impl Rearrange {
    /// How the elements move.
    ///
    /// Errors: as for the op.
    pub fn moves(&self, x: &Type) -> Result<Moves, Fault> {
        self.axes.operands(1)?;
        let groups = &self.axes.inputs[0];
        if groups.len() != x.rank() {
            return Err(Fault::new(
                Code::Axes,
                format!("axes \"{}\" name {} axes, the operand {x} has {}", self.axes, groups.len(), x.rank()),
            ));
        }
        let sizes = self.sizes(x)?;
        let own: Vec<&str> = groups.iter().flatten().map(String::as_str).collect();
        let own_sizes: Vec<usize> = own.iter().map(|w| sizes[*w]).collect();
        let out: Vec<&str> = self.axes.output.iter().flatten().map(String::as_str).collect();
        if let Some(w) = own.iter().find(|w| !out.contains(w) && sizes[**w] != 1) {
            return Err(Fault::new(Code::Axes, format!("axis `{w}` of the operand is not in the result"))
                .help("`reduce` folds an axis, `slice` drops part of one"));
        }
        let size = |w: &str| {
            sizes.get(w).copied().ok_or_else(|| {
                Fault::new(Code::Attribute, format!("the size of axis `{w}` is not given"))
                    .help(format!("write `{w}=…`"))
            })
        };
        let merged = |g: &axes::Group| g.iter().try_fold(1usize, |n, w| Ok(n.saturating_mul(size(w)?)));
        let shape = self.axes.output.iter().map(merged).collect::<Result<_, Fault>>()?;
        Ok(Moves {
            sizes: out.iter().map(|w| size(w)).collect::<Result<_, _>>()?,
            strides: view(&out, &own, &strides(&own_sizes)),
            shape,
        })
    }

    /// The size of every word.
    fn sizes(&self, x: &Type) -> Result<BTreeMap<String, usize>, Fault> {
        let mut sizes = self.sizes.clone();
        for (g, &n) in self.axes.inputs[0].iter().zip(&x.shape) {
            self.split(&mut sizes, g, n)?;
        }
        Ok(sizes)
    }

    /// The cotangent of the operand: moved back, and summed where the operand was repeated.
    fn turn_back(&self, e: &mut Emit, x: &Type, dy: Local) -> Result<Local, Fault> {
        let sizes = self.sizes(x)?;
        let (own, out) = (&self.axes.inputs[0], &self.axes.output);
        let single = |w: &String| vec![w.clone()];
        let flat: Vec<axes::Group> = own.iter().flatten().map(single).collect();
        let repeated: Vec<axes::Group> = out.iter().flatten().map(single).filter(|g| !flat.contains(g)).collect();
        let named = |e: &mut Emit, from: &[axes::Group], to: &[axes::Group], v| {
            let used = |w: &String| from.iter().chain(to).flatten().any(|x| x == w);
            let sizes = sizes.iter().filter(|(w, _)| used(w)).map(|(w, n)| (w.clone(), *n)).collect();
            e.op("moved", Rearrange { axes: axes_of(&[from], to), sizes }, &[v])
        };
        if repeated.iter().all(|g| sizes.get(&g[0]) == Some(&1)) {
            return named(e, out, own, dy);
        }
        let wide: Vec<axes::Group> = flat.iter().chain(&repeated).cloned().collect();
        let wide_value = if *out == wide { dy } else { named(e, out, &wide, dy)? };
        let sum = Reduce { fold: FoldKind::Sum, axes: axes_of(&[&wide], &flat) };
        let sum = e.op("sum", sum, &[wide_value])?;
        if *own == flat { Ok(sum) } else { named(e, &flat, own, sum) }
    }

    fn split(&self, sizes: &mut BTreeMap<String, usize>, group: &[String], n: usize) -> Result<(), Fault> {
        let unknown: Vec<&String> = group.iter().filter(|w| !sizes.contains_key(*w)).collect();
        let known = group.iter().filter_map(|w| sizes.get(w)).fold(1usize, |a, &b| a.saturating_mul(b));
        match unknown.as_slice() {
            [] if known == n => Ok(()),
            [] => Err(Fault::new(Code::Dim, format!("({}) is {known}, the operand's axis is {n}", group.join(" ")))),
            [one] if known > 0 && n.is_multiple_of(known) => {
                sizes.insert((*one).clone(), n / known);
                Ok(())
            }
            [_] => Err(Fault::new(Code::Dim, format!("({}) does not divide: {n} by {known}", group.join(" ")))),
            _ => Err(Fault::new(
                Code::Attribute,
                format!("({}) has {} axes of unknown size", group.join(" "), unknown.len()),
            )
            .help("give the size of all but one")),
        }
    }
}

impl OpDef for Rearrange {
    fn mnemonics() -> Vec<&'static str> {
        vec!["rearrange"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        let axes = attrs.take_axes()?;
        let mut sizes = BTreeMap::new();
        for (name, n) in std::mem::take(&mut attrs.ints) {
            let n = usize::try_from(n)
                .map_err(|_| Fault::new(Code::Attribute, format!("`{name}` is {n}; it must not be negative")))?;
            let known = axes.inputs.iter().chain([&axes.output]).flatten().flatten().any(|w| *w == name);
            if !known || sizes.insert(name.clone(), n).is_some() {
                return Err(Fault::new(
                    Code::Attribute,
                    format!("`{name}` is no axis of \"{axes}\", or is given twice"),
                ));
            }
        }
        Ok(Rearrange { axes, sizes })
    }

    fn write(&self) -> (&'static str, Attrs) {
        (
            "rearrange",
            Attrs {
                axes: Some(self.axes.to_string()),
                ints: self.sizes.iter().map(|(n, s)| (n.clone(), *s as i64)).collect(),
                ..Attrs::default()
            },
        )
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("rearrange", x, 1)?;
        Ok(Type::new(x[0].dtype, self.moves(&x[0])?.shape))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let at = self.moves(&x[0].ty).map(|m| offsets(&m.sizes, &m.strides)).unwrap_or_default();
            Tensor { ty: to.clone(), data: at.iter().map(|&i| x[0].data[i]).collect() }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        Ok(vec![Some(self.turn_back(e, e.primal_ty(x[0]), dy)?)])
    }

    fn samples() -> Vec<String> {
        [
            "func @f(%x: f32[2, 3, 8]) -> f32[2, 4, 3, 2] { %y = rearrange %x \"b t (h d) -> b h t d\" h=4 return %y }",
            "func @f(%x: f32[2, 3, 5]) -> f32[5, 6] { %y = rearrange %x \"a b c -> c (a b)\" return %y }",
            "func @f(%x: f32[5]) -> f32[3, 5, 2] { %y = rearrange %x \"c -> a c b\" a=3 b=2 return %y }",
            "func @f(%x: f32[6, 4]) -> f32[3, 8] { %y = rearrange %x \"(a b) c -> a (b c)\" a=3 return %y }",
        ]
        .map(String::from)
        .to_vec()
    }
}

/// `%y = slice %x axis=1 start=2 end=8` — part of one axis.
///
/// Shapes: axis `axis` has `end - start` elements.
/// Errors: `attribute` unless start <= end <= size.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Which axis, from 0.
    pub axis: usize,
    /// First element kept.
    pub start: usize,
    /// First element after.
    pub end: usize,
}

impl OpDef for Slice {
    fn mnemonics() -> Vec<&'static str> {
        vec!["slice"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Slice { axis: attrs.take("axis")?, start: attrs.take("start")?, end: attrs.take("end")? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        let ints = [("axis", self.axis), ("start", self.start), ("end", self.end)]
            .map(|(n, v)| (n.to_string(), v as i64))
            .to_vec();
        ("slice", Attrs { ints, ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("slice", x, 1)?;
        let size = axis_size("slice", &x[0], self.axis)?;
        if self.start > self.end || self.end > size {
            return Err(Fault::new(
                Code::Attribute,
                format!("`slice` of {}..{} does not fit an axis of {size}", self.start, self.end),
            ));
        }
        let mut shape = x[0].shape.clone();
        shape[self.axis] = self.end - self.start;
        Ok(Type::new(x[0].dtype, shape))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let s = x[0].ty.strides();
            let base = self.start * s[self.axis];
            Tensor { ty: to.clone(), data: offsets(&to.shape, &s).iter().map(|i| x[0].data[base + i]).collect() }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        let ty = e.primal_ty(x[0]);
        let size = ty.shape[self.axis];
        let mut parts = vec![];
        for (n, at) in [(self.start, 0), (size - self.end, 1)] {
            if at == 1 {
                parts.push(dy);
            }
            if n > 0 {
                let mut shape = ty.shape.clone();
                shape[self.axis] = n;
                parts.push(e.splat(0.0, &Type::new(ty.dtype, shape))?);
            }
        }
        Ok(vec![Some(if parts.len() == 1 { dy } else { e.op("padded", Concat { axis: self.axis }, &parts)? })])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[3, 9, 2]) -> f32[3, 4, 2] { %y = slice %x axis=1 start=3 end=7 return %y }".into()]
    }
}

/// `%y = concat %a, %b axis=1` — operands one after another along one axis.
///
/// Shapes: operands agree in every other axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// Which axis, from 0.
    pub axis: usize,
}

impl OpDef for Concat {
    fn mnemonics() -> Vec<&'static str> {
        vec!["concat"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Concat { axis: attrs.take("axis")? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("concat", Attrs { ints: vec![("axis".into(), self.axis as i64)], ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        let Some(first) = x.first() else { return Err(Fault::new(Code::Arity, "`concat` takes one operand or more")) };
        let mut shape = first.shape.clone();
        axis_size("concat", first, self.axis)?;
        shape[self.axis] = 0;
        for t in x {
            let mut other = t.shape.clone();
            let own = axis_size("concat", t, self.axis)?;
            other[self.axis] = shape[self.axis];
            if t.dtype != first.dtype || other != shape {
                return Err(Fault::new(Code::Dim, format!("`concat` along axis {} joins {first} and {t}", self.axis))
                    .help("operands agree in dtype and in every other axis"));
            }
            shape[self.axis] = shape[self.axis].saturating_add(own);
        }
        Ok(Type::new(first.dtype, shape))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let mut out = Tensor::full(to.clone(), 0.0);
            let s = to.strides();
            let mut start = 0;
            for t in x {
                for (&v, o) in t.data.iter().zip(offsets(&t.ty.shape, &s)) {
                    out.data[start * s[self.axis] + o] = v;
                }
                start += t.ty.shape[self.axis];
            }
            out
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault> {
        let mut start = 0;
        let mut out = vec![];
        for (v, wanted) in x.iter().zip(wanted) {
            let end = start + e.primal_ty(*v).shape[self.axis];
            let part = Slice { axis: self.axis, start, end };
            out.push(wanted.then(|| e.op("part", part, &[dy])).transpose()?);
            start = end;
        }
        Ok(out)
    }

    fn samples() -> Vec<String> {
        vec![
            "func @f(%a: f32[3, 2], %b: f32[3, 5]) -> f32[3, 7] { %y = concat %a, %b axis=1 return %y }".into(),
            "func @f(%a: f32[1, 3], %b: f32[4, 3]) -> f32[6, 3] { %y = concat %a, %b, %a axis=0 return %y }".into(),
        ]
    }
}

pub(super) fn axis_size(mnemonic: &str, x: &Type, axis: usize) -> Result<usize, Fault> {
    x.shape.get(axis).copied().ok_or_else(|| {
        Fault::new(Code::Attribute, format!("`{mnemonic}` names axis {axis}, the operand {x} has {}", x.rank()))
    })
}

//! Ops that address rows by run-time numbers.

use super::shape::axis_size;
use super::{Attrs, Constant, Cotangents, Iota, OpDef, Pointwise, arity, axes_of, each, want};
use crate::axes::{self, Axes, Sizes};
use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::scalar::Scalar;
use crate::tensor::{Tensor, offsets, view};
use crate::types::{Dtype, Type};

/// The words of a gather or a scatter: the row axis, the table's, the ids', the picked tensor's.
struct Words<'a> {
    row: &'a str,
    table: Vec<&'a str>,
    ids: Vec<&'a str>,
    picked: Vec<&'a str>,
}

fn words<'a>(table: &'a [axes::Group], ids: &'a [axes::Group], picked: &'a [axes::Group]) -> Result<Words<'a>, Fault> {
    let (table, ids, picked) = (Axes::flat(table)?, Axes::flat(ids)?, Axes::flat(picked)?);
    let rows: Vec<&str> = table.iter().copied().filter(|w| !picked.contains(w)).collect();
    let [row] = rows[..] else {
        return Err(Fault::new(
            Code::Axes,
            format!("the ids must pick along one axis; the picked tensor lacks {} of the table's", rows.len()),
        ));
    };
    if let Some(w) = picked.iter().find(|w| !table.contains(w) && !ids.contains(w)) {
        return Err(Fault::new(Code::Axes, format!("axis `{w}` is in neither the table nor the ids")));
    }
    if let Some(w) = ids.iter().find(|w| !picked.contains(w)) {
        return Err(Fault::new(Code::Axes, format!("axis `{w}` of the ids is not in the picked tensor")));
    }
    Ok(Words { row, table, ids, picked })
}

/// `%y = gather %table, %ids "v d, t -> t d"` — rows of a table picked by ids.
///
/// Shapes: the table's axis that the result lacks is the one picked along. Axes that table and ids share pair.
/// Numbers: an id outside the axis yields 0.
/// Source: StableHLO `gather`, which clamps instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    /// Table's, ids' and result's axes.
    pub axes: Axes,
}

/// How a gather reads: over the result's axes.
pub struct Picks {
    /// Strides of the table over the result's axes, the picked axis left out.
    pub table: Vec<usize>,
    /// Strides of the ids over the result's axes.
    pub ids: Vec<usize>,
    /// Rows there are, and elements from one to the next.
    pub row: (usize, usize),
}

impl Gather {
    /// How it reads a table and ids of these types.
    ///
    /// Errors: as for the op.
    pub fn picks(&self, table: &Type, ids: &Type) -> Result<Picks, Fault> {
        self.axes.operands(2)?;
        picks(&words(&self.axes.inputs[0], &self.axes.inputs[1], &self.axes.output)?, table, ids)
    }
}

fn picks(w: &Words, table: &Type, ids: &Type) -> Result<Picks, Fault> {
    let strides = table.strides();
    let axis = w.table.iter().position(|x| *x == w.row).unwrap_or(0);
    Ok(Picks {
        table: view(&w.picked, &w.table, &strides),
        ids: view(&w.picked, &w.ids, &ids.strides()),
        row: (table.shape[axis], strides[axis]),
    })
}

fn picked_shape(w: &Words, table: &Type, ids: &Type) -> Result<Vec<usize>, Fault> {
    let mut sizes = Sizes::new();
    axes::bind(&mut sizes, &w.table, &table.shape)?;
    axes::bind(&mut sizes, &w.ids, &ids.shape)?;
    axes::shape(&sizes, &w.picked)
}

impl OpDef for Gather {
    fn mnemonics() -> Vec<&'static str> {
        vec!["gather"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Gather { axes: attrs.take_axes()? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("gather", Attrs { axes: Some(self.axes.to_string()), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("gather", x, 2)?;
        want("gather", "the ids", &x[1], x[1].dtype == Dtype::I32, "i32")?;
        self.axes.operands(2)?;
        let w = words(&self.axes.inputs[0], &self.axes.inputs[1], &self.axes.output)?;
        Ok(Type::new(x[0].dtype, picked_shape(&w, &x[0], &x[1])?))
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let Ok(p) = self.picks(&x[0].ty, &x[1].ty) else { return Tensor::full(to.clone(), 0.0) };
            let (table, ids) = (offsets(&to.shape, &p.table), offsets(&to.shape, &p.ids));
            let data = table
                .iter()
                .zip(ids)
                .map(|(&t, i)| {
                    let id = x[1].data[i];
                    if id >= 0.0 && (id as usize) < p.row.0 { x[0].data[t + id as usize * p.row.1] } else { 0.0 }
                })
                .collect();
            Tensor { ty: to.clone(), data }
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, _: &[bool]) -> Result<Cotangents, Fault> {
        let (table, ids) = (e.primal_ty(x[0]), e.primal(x[1]));
        let zeros = e.splat(0.0, table)?;
        let [t, i] = &self.axes.inputs[..] else { return Ok(vec![None; 2]) };
        let add = ScatterAdd { axes: axes_of(&[t, i, &self.axes.output], t) };
        Ok(vec![Some(e.op("rows", add, &[zeros, ids, dy])?), None])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[5, 3], %i: i32[2, 4]) -> f32[2, 4, 3] { %y = gather %x, %i \"v d, b t -> b t d\" return %y }".into(),
             "func @f(%x: f32[4, 6], %i: i32[4]) -> f32[4] { %y = gather %x, %i \"t v, t -> t\" return %y }".into()]
    }
}

/// `%y = scatter_add %table, %ids, %rows "v d, t, t d -> v d"` — the table with rows added at ids.
///
/// Shapes: as `gather`, turned round; the result is of the table's type.
/// Numbers: a row whose id is outside the axis is dropped; equal ids add up in token order.
/// Source: StableHLO `scatter` with an add.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterAdd {
    /// Table's, ids', rows' and result's axes.
    pub axes: Axes,
}

impl ScatterAdd {
    fn words(&self) -> Result<Words<'_>, Fault> {
        self.axes.operands(3)?;
        if self.axes.output != self.axes.inputs[0] {
            return Err(Fault::new(
                Code::Axes,
                format!("`scatter_add` yields the table's axes, not \"{}\"", self.axes),
            ));
        }
        words(&self.axes.inputs[0], &self.axes.inputs[1], &self.axes.inputs[2])
    }

    /// How the rows lie: sizes of the rows' axes, and how the table and the ids run along them.
    ///
    /// Errors: as for the op.
    pub fn picks(&self, table: &Type, ids: &Type) -> Result<Picks, Fault> {
        picks(&self.words()?, table, ids)
    }
}

impl OpDef for ScatterAdd {
    fn mnemonics() -> Vec<&'static str> {
        vec!["scatter_add"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(ScatterAdd { axes: attrs.take_axes()? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("scatter_add", Attrs { axes: Some(self.axes.to_string()), ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("scatter_add", x, 3)?;
        want("scatter_add", "the ids", &x[1], x[1].dtype == Dtype::I32, "i32")?;
        want(
            "scatter_add",
            "the rows",
            &x[2],
            x[2].dtype == x[0].dtype && x[0].dtype.is_float(),
            "of the table's float dtype",
        )?;
        let w = self.words()?;
        let need = picked_shape(&w, &x[0], &x[1])?;
        if need != x[2].shape {
            return Err(Fault::new(Code::Dim, format!("the rows are {}, table and ids ask for {need:?}", x[2])));
        }
        Ok(x[0].clone())
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let mut out = Tensor { ty: to.clone(), data: x[0].data.clone() };
            let Ok(p) = self.picks(&x[0].ty, &x[1].ty) else { return out };
            let (table, ids) = (offsets(&x[2].ty.shape, &p.table), offsets(&x[2].ty.shape, &p.ids));
            for ((&t, i), v) in table.iter().zip(ids).zip(&x[2].data) {
                let id = x[1].data[i];
                if id >= 0.0 && (id as usize) < p.row.0 {
                    out.data[t + id as usize * p.row.1] += v;
                }
            }
            out
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault> {
        let [t, i, rows] = &self.axes.inputs[..] else { return Ok(vec![None; 3]) };
        let gather = Gather { axes: axes_of(&[t, i], rows) };
        let ids = e.primal(x[1]);
        let rows = wanted[2].then(|| e.op("rows", gather, &[dy, ids])).transpose()?;
        Ok(vec![Some(dy), None, rows])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[5, 3], %i: i32[7], %r: f32[7, 3]) -> f32[5, 3] { %y = scatter_add %x, %i, %r \"v d, t, t d -> v d\" return %y }".into()]
    }
}

/// `%y = update_slice %x, %part, %start axis=1` — the operand with part of one axis replaced.
///
/// Shapes: `part` agrees with `x` but along `axis`; `start` is an i32 scalar.
/// Numbers: the start is clamped so that the part fits.
/// Source: StableHLO `dynamic_update_slice`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateSlice {
    /// Which axis, from 0.
    pub axis: usize,
}

impl UpdateSlice {
    /// What lies where the part was written: rows at the start, clamped as the op clamps it, and on.
    fn part(&self, e: &mut Emit, part: &Type, dy: Local, start: Local) -> Result<Local, Fault> {
        let (size, count) = (e.ty(dy).shape[self.axis], part.shape[self.axis]);
        let number = |e: &mut Emit, n: usize| e.op("c", Constant { dtype: Dtype::I32, value: n as f64 }, &[]);
        let (first, last) = (number(e, 0)?, number(e, size - count)?);
        let start = e.op("start", Pointwise::plain(Scalar::Max), &[start, first])?;
        let start = e.op("start", Pointwise::plain(Scalar::Min), &[start, last])?;
        let along = e.op("along", Iota { size: count }, &[])?;
        let ids = e.op("ids", Pointwise::plain(Scalar::Add), &[along, start])?;
        let table: Vec<axes::Group> = (0..part.rank()).map(|i| vec![format!("i{i}")]).collect();
        let mut out = table.clone();
        out[self.axis] = vec!["n".to_string()];
        e.op("part", Gather { axes: axes_of(&[&table, &[vec!["n".to_string()]]], &out) }, &[dy, ids])
    }
}

impl OpDef for UpdateSlice {
    fn mnemonics() -> Vec<&'static str> {
        vec!["update_slice"]
    }

    fn read(_: &str, attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(UpdateSlice { axis: attrs.take("axis")? })
    }

    fn write(&self) -> (&'static str, Attrs) {
        ("update_slice", Attrs { ints: vec![("axis".into(), self.axis as i64)], ..Attrs::default() })
    }

    fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
        arity("update_slice", x, 3)?;
        want("update_slice", "the start", &x[2], x[2] == Type::new(Dtype::I32, []), "an i32 scalar")?;
        let (size, part) = (axis_size("update_slice", &x[0], self.axis)?, axis_size("update_slice", &x[1], self.axis)?);
        let mut shape = x[1].shape.clone();
        shape[self.axis] = size;
        if x[1].dtype != x[0].dtype || shape != x[0].shape || part > size {
            return Err(Fault::new(
                Code::Dim,
                format!("a part {} does not fit {} along axis {}", x[1], x[0], self.axis),
            ));
        }
        Ok(x[0].clone())
    }

    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
        each(ranks, |x| {
            let s = to.strides();
            let last = to.shape[self.axis] - x[1].ty.shape[self.axis];
            let start = (x[2].data[0].max(0.0) as usize).min(last);
            let mut out = x[0].clone();
            for (&v, o) in x[1].data.iter().zip(offsets(&x[1].ty.shape, &s)) {
                out.data[start * s[self.axis] + o] = v;
            }
            out
        })
    }

    fn vjp(&self, e: &mut Emit, x: &[Value], _: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault> {
        let (part, start) = (e.primal_ty(x[1]), e.primal(x[2]));
        let hidden = if wanted[0] {
            let zeros = e.splat(0.0, part)?;
            Some(e.op("outside", self.clone(), &[dy, zeros, start])?)
        } else {
            None
        };
        Ok(vec![hidden, wanted[1].then(|| self.part(e, part, dy, start)).transpose()?, None])
    }

    fn samples() -> Vec<String> {
        vec!["func @f(%x: f32[3, 9], %p: f32[3, 2], %i: i32) -> f32[3, 9] { %y = update_slice %x, %p, %i axis=1 return %y }".into()]
    }
}

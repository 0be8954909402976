//! `scatter_add` to work: rows added where they go, or a nest for layouts that ask for one.

use super::index::{Index, unit};
use super::{Lower, Lowered, Making};
use crate::body::{Kind, Step};
use crate::nest::{Fold, Nest, Write};
use crate::{Error, Work};
use omchat_ir::ops::ScatterAdd;
use omchat_ir::{Node, Scalar};

/// The words of a scatter: the table's, the ids', the rows'.
struct Words(Vec<String>, Vec<String>, Vec<String>);

impl Words {
    fn of(s: &ScatterAdd) -> Words {
        let flat = |i: usize| s.axes.inputs[i].iter().flatten().cloned().collect();
        Words(flat(0), flat(1), flat(2))
    }

    /// Whether table and rows are matrices: the table's rows first, the rows in the ids' order, columns as the table's.
    fn matrices(&self) -> bool {
        let Words(table, ids, rows) = self;
        !table.is_empty() && *rows == [&ids[..], &table[1..]].concat() && !ids.iter().any(|w| table.contains(w))
    }
}

pub(super) fn scatter_add(l: &Lower, node: &Node, s: &ScatterAdd) -> Result<Lowered, Error> {
    let words = Words::of(s);
    if !words.matrices() {
        return Ok(nest(l, node, &words));
    }
    let (table, ids) = (l.f.ty(node.operands[0]), l.f.ty(node.operands[1]));
    let work = Work::ScatterAdd {
        dtype: table.dtype,
        height: table.shape[0],
        width: table.shape[1..].iter().product(),
        tokens: ids.elements(),
        ids: node.operands[1].0 as usize,
        rows: node.operands[2].0 as usize,
    };
    Ok(Lowered::Work { pieces: vec![work], onto: Some(node.operands[0].0 as usize) })
}

/// Every table element sums the rows whose id is its own: work for ids that share an axis with the table.
fn nest(l: &Lower, node: &Node, Words(tw, iw, rw): &Words) -> Lowered {
    let (table, ids, rows) = (node.operands[0], node.operands[1], node.operands[2]);
    let row = tw.iter().position(|w| !rw.contains(w)).unwrap_or(0);
    let folds: Vec<&String> = iw.iter().filter(|w| !tw.contains(w)).collect();
    let size_of = |w: &String| l.f.ty(ids).shape[iw.iter().position(|x| x == w).unwrap_or(0)];
    let kept = l.f.ty(table).shape.clone();
    let folded: Vec<usize> = folds.iter().map(|w| size_of(w)).collect();
    let axes = kept.len() + folded.len();
    let place = |w: &String| {
        tw.iter()
            .position(|x| x == w)
            .or_else(|| folds.iter().position(|x| *x == w).map(|i| kept.len() + i))
            .unwrap_or(0)
    };
    let index = |own: &[String]| -> Index { own.iter().map(|w| unit(place(w), axes)).collect() };
    let mut m = Making::new(axes);
    let id = l.value(ids, &index(iw), &mut m);
    let own = m.body.push(Step::Index { axis: row });
    let hit = m.body.push(Step::Apply { f: Scalar::Eq, args: vec![id, own], of: Kind::Int });
    let value = l.value(rows, &index(rw), &mut m);
    let zero = m.body.push(Step::Float { bits: 0 });
    let picked = m.body.push(Step::Apply { f: Scalar::Select, args: vec![hit, value, zero], of: Kind::Float });
    let mut body = m.taken();
    body.results = vec![picked];
    let base = l.value(table, &index(tw), &mut m);
    let sum = m.body.push(Step::Folded { kind: Kind::Float });
    let out = m.body.push(Step::Apply { f: Scalar::Add, args: vec![base, sum], of: Kind::Float });
    m.body.results = vec![out];
    let ty = l.f.ty(table);
    let writes = vec![Write { result: 0, dtype: ty.dtype, offset: 0, strides: ty.strides(), at: None }];
    let nest = Nest { kept, folded, fold: Some(Fold::Sum), reads: m.reads, body, epilogue: m.body, writes };
    Lowered::Work { pieces: vec![Work::Nest(nest)], onto: None }
}

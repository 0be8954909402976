//! Weights that stay packed on a target without their dtype: which parameters they reach, and the casts they are
//! read through.
//!
//! A cast to f32 is copied to its readers by fusion, so it costs no launch and no memory: the reader widens.

use crate::passes::Unit;
use crate::passes::cse::renumber;
use crate::target::Target;
use omchat_ir::ops::Cast;
use omchat_ir::{Action, Bind, Dtype, Function, Module, Named, Node, Op, Role, Value};
use std::collections::BTreeMap;

/// Which parameters of each function stay packed: weights of the entry, and what every caller hands on of them.
pub(super) fn params(unit: &Unit, target: &Target, wide: &dyn Fn(Dtype) -> Dtype) -> Vec<Vec<bool>> {
    let functions = &unit.module.functions;
    let narrow = |d: Dtype| target.packs(d) && !target.holds(d);
    let mut packed: Vec<Vec<bool>> =
        functions.iter().map(|f| f.param_types().iter().map(|t| narrow(t.dtype)).collect()).collect();
    let entry = unit.entry.0 as usize;
    packed[entry].iter_mut().zip(&functions[entry].params).for_each(|(p, role)| *p &= *role == Role::Weight);
    let twins = twins(functions, wide);
    // A function's twin takes a parameter as it does, and a caller hands on only what it has: until nothing changes.
    loop {
        let before = packed.clone();
        for i in (0..functions.len()).rev() {
            for group in twins.iter().filter(|g| g.contains(&i)) {
                meet(&mut packed, functions, group);
            }
            for n in &functions[i].nodes {
                let Action::Call { callee, .. } = n.action else { continue };
                for (j, o) in n.operands.iter().enumerate() {
                    let mine = packed[i].get(o.0 as usize).is_some_and(|p| *p);
                    packed[callee.0 as usize][j] &= mine;
                }
            }
        }
        if packed == before {
            return packed;
        }
    }
}

/// Functions that will be one once dtypes are widened, where there are two or more.
fn twins(functions: &[Function], wide: &dyn Fn(Dtype) -> Dtype) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, f) in functions.iter().enumerate() {
        let mut binds = f.binds.clone();
        for b in binds.values_mut() {
            if let Bind::Dtype(d) = b {
                *d = wide(*d);
            }
        }
        groups.entry(format!("{} {binds:?}", f.name)).or_default().push(i);
    }
    groups.into_values().filter(|g| g.len() > 1).collect()
}

/// What is packed in all functions of a group, or in none.
fn meet(packed: &mut [Vec<bool>], functions: &[Function], group: &[usize]) {
    let dtype = |f: usize, j: usize| functions[f].value(Value(j as u32)).ty.dtype;
    for j in 0..packed[group[0]].len() {
        let alike = |f: &usize| packed[*f].get(j) == Some(&true) && dtype(*f, j) == dtype(group[0], j);
        let all = group.iter().all(alike);
        group.iter().for_each(|f| {
            if let Some(p) = packed[*f].get_mut(j) {
                *p = all;
            }
        });
    }
}

/// Puts a cast before whatever reads a packed parameter as a number; calls that take it packed, take it.
pub(super) fn read_wide(module: &mut Module, packed: &[Vec<bool>]) {
    for (i, f) in module.functions.iter_mut().enumerate() {
        let params: Vec<usize> = (0..packed[i].len()).filter(|p| packed[i][*p]).collect();
        let casts: Vec<Node> = params.into_iter().filter_map(|p| cast(f, Value(p as u32), packed)).collect();
        if !casts.is_empty() {
            f.nodes.splice(0..0, casts);
            renumber(f);
        }
    }
}

/// The cast of a packed parameter, which its readers are turned to; nothing where none needs it.
fn cast(f: &mut Function, param: Value, packed: &[Vec<bool>]) -> Option<Node> {
    let wide = Value(f.values.len() as u32);
    let mut found = false;
    let mut turn = |v: &mut Value| {
        if *v == param {
            (*v, found) = (wide, true);
        }
    };
    for n in &mut f.nodes {
        match &n.action {
            Action::Op(Op::Cast(Cast { dtype: Dtype::F32 })) => {}
            Action::Call { callee, .. } => {
                let taken = &packed[callee.0 as usize];
                n.operands.iter_mut().enumerate().filter(|(j, _)| !taken[*j]).for_each(|(_, v)| turn(v));
            }
            Action::Op(_) => n.operands.iter_mut().for_each(&mut turn),
        }
    }
    f.results.iter_mut().for_each(&mut turn);
    if !found {
        return None;
    }
    let mut name = format!("{}.wide", f.value(param).name);
    while f.values.iter().any(|v| v.name == name) {
        name.push('.');
        name.push_str("wide");
    }
    let mut ty = f.ty(param).clone();
    ty.dtype = Dtype::F32;
    f.values.push(Named { name, ty });
    Some(Node { action: Action::Op(Cast { dtype: Dtype::F32 }.into()), operands: vec![param], results: vec![wide] })
}

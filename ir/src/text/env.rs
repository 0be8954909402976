//! What letters and loop variables stand for while a template is instantiated.

use super::ast::{Dim, DtypeText, TypeText};
use crate::Bind;
use crate::fault::{Code, Fault};
use crate::types::{Dtype, Type};
use std::collections::BTreeMap;

/// Sizes and dtypes by letter.
#[derive(Clone, Default)]
pub(super) struct Env {
    /// Sizes, loop variables among them.
    pub(super) sizes: BTreeMap<String, i64>,
    /// Dtypes.
    pub(super) dtypes: BTreeMap<String, Dtype>,
}

impl Env {
    /// What a template's letters stand for.
    ///
    /// Errors: a size beyond what arithmetic holds.
    pub(super) fn new(binds: &BTreeMap<String, Bind>) -> Result<Env, Fault> {
        let mut env = Env::default();
        for (name, bind) in binds {
            match bind {
                Bind::Size(n) => {
                    let n = i64::try_from(*n)
                        .map_err(|_| Fault::new(Code::Dim, format!("`{name}` is {n}; a size is too large")))?;
                    env.sizes.insert(name.clone(), n);
                }
                Bind::Dtype(d) => {
                    env.dtypes.insert(name.clone(), *d);
                }
            }
        }
        Ok(env)
    }

    /// What size arithmetic yields.
    ///
    /// Errors: an unknown letter, an overflow, a quotient that is not whole.
    pub(super) fn dim(&self, d: &Dim) -> Result<i64, Fault> {
        let overflow = || Fault::new(Code::Dim, "a size is too large");
        match d {
            Dim::Number(n) => Ok(*n),
            Dim::Letter(l) => {
                self.sizes.get(l).copied().ok_or_else(|| Fault::new(Code::Name, format!("there is no size `{l}`")))
            }
            Dim::Join(op, a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                match op {
                    '+' => a.checked_add(b).ok_or_else(overflow),
                    '-' => a.checked_sub(b).ok_or_else(overflow),
                    '*' => a.checked_mul(b).ok_or_else(overflow),
                    _ => match a.checked_rem(b) {
                        Some(0) => a.checked_div(b).ok_or_else(overflow),
                        _ => Err(Fault::new(Code::Dim, format!("{a} / {b} is no whole number"))),
                    },
                }
            }
        }
    }

    /// A size: whole and not negative.
    ///
    /// Errors: as `dim`; a negative size.
    pub(super) fn size(&self, d: &Dim) -> Result<usize, Fault> {
        let n = self.dim(d)?;
        usize::try_from(n).map_err(|_| Fault::new(Code::Dim, format!("a size is {n}; it must not be negative")))
    }

    /// A concrete type.
    ///
    /// Errors: as `size`; a letter for no dtype; a type too large to address.
    pub(super) fn ty(&self, t: &TypeText) -> Result<Type, Fault> {
        let dtype = match &t.dtype {
            DtypeText::Known(d) => *d,
            DtypeText::Letter(l) => self
                .dtypes
                .get(l)
                .copied()
                .ok_or_else(|| Fault::new(Code::Dtype, format!("`{l}` stands for no dtype")))?,
        };
        let ty = Type::new(dtype, t.dims.iter().map(|d| self.size(d)).collect::<Result<Vec<_>, _>>()?);
        if !ty.fits() {
            return Err(Fault::new(Code::Dim, format!("{ty} is too large to address")));
        }
        Ok(ty)
    }
}

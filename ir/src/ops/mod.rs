//! The primitive ops: each declared once, in one file a family. No method has a default.

mod collective;
mod einsum;
mod fold;
mod index;
mod leaf;
mod pointwise;
mod shape;

pub use collective::{AllGather, AllReduce, CollectivePermute, ReduceScatter};
pub use einsum::Einsum;
pub use fold::{ArgMax, FoldKind, KthLargest, Reduce};
pub use index::{Gather, ScatterAdd, UpdateSlice};
pub use leaf::{Constant, Iota};
pub use pointwise::{Cast, Copy, Pointwise};
pub use shape::{Concat, Rearrange, Slice};

use crate::differentiate::{Emit, Local};
use crate::fault::{Code, Fault};
use crate::module::Value;
use crate::tensor::Tensor;
use crate::types::{Dtype, Type};

/// An op's attributes as the text spells them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs {
    /// What follows the mnemonic after a dot: `f32`, `sum`.
    pub suffix: Option<String>,
    /// The axes string.
    pub axes: Option<String>,
    /// `name=number`, in order.
    pub ints: Vec<(String, i64)>,
    /// A bare number: the value of a constant, the size of an iota.
    pub number: Option<f64>,
}

impl Attrs {
    /// Takes the integer of that name.
    ///
    /// Errors: `Attribute` if it is missing or negative.
    pub fn take(&mut self, name: &str) -> Result<usize, Fault> {
        let value = self.take_signed(name)?;
        usize::try_from(value)
            .map_err(|_| Fault::new(Code::Attribute, format!("`{name}` is {value}; it must not be negative")))
    }

    /// Takes the integer of that name, of any sign.
    ///
    /// Errors: `Attribute` if it is missing.
    pub fn take_signed(&mut self, name: &str) -> Result<i64, Fault> {
        match self.ints.iter().position(|(n, _)| n == name) {
            Some(i) => Ok(self.ints.remove(i).1),
            None => Err(Fault::new(Code::Attribute, format!("`{name}` is missing"))
                .help(format!("write `{name}=…` after the operands"))),
        }
    }

    /// Whether an integer of that name is given.
    pub fn has(&self, name: &str) -> bool {
        self.ints.iter().any(|(n, _)| n == name)
    }

    /// Takes the axes string, parsed.
    ///
    /// Errors: `Axes` if it is missing or malformed.
    pub fn take_axes(&mut self) -> Result<crate::axes::Axes, Fault> {
        match self.axes.take() {
            Some(text) => crate::axes::Axes::parse(&text),
            None => {
                Err(Fault::new(Code::Axes, "the axes string is missing")
                    .help("write it after the operands: \"a b -> a\""))
            }
        }
    }

    /// Takes the suffix as a dtype.
    ///
    /// Errors: `Dtype` if it is missing or unknown.
    pub fn take_dtype(&mut self, mnemonic: &str) -> Result<Dtype, Fault> {
        let text = self.suffix.take().unwrap_or_default();
        Dtype::from_name(&text).ok_or_else(|| {
            Fault::new(Code::Dtype, format!("`{mnemonic}.{text}` names no dtype"))
                .help(format!("write `{mnemonic}.f32`, .bf16, .f16, .i32 or .bool"))
        })
    }

    fn finish(self, mnemonic: &str) -> Result<(), Fault> {
        let left = if let Some(s) = self.suffix {
            format!("suffix `.{s}`")
        } else if let Some(a) = self.axes {
            format!("axes \"{a}\"")
        } else if let Some((n, _)) = self.ints.first() {
            format!("attribute `{n}`")
        } else if self.number.is_some() {
            "bare number".to_string()
        } else {
            return Ok(());
        };
        Err(Fault::new(Code::Attribute, format!("`{mnemonic}` takes no {left}")))
    }
}

/// The cotangent of each operand, where there is one.
pub type Cotangents = Vec<Option<Local>>;

/// What an op must say about itself.
pub trait OpDef: Sized {
    /// Its mnemonics; one, but for the scalar functions.
    fn mnemonics() -> Vec<&'static str>;
    /// The op that the text spells.
    fn read(mnemonic: &str, attrs: &mut Attrs) -> Result<Self, Fault>;
    /// Its mnemonic, and its attributes as the text spells them.
    fn write(&self) -> (&'static str, Attrs);
    /// The type of its result; this is also the verifier.
    fn infer(&self, x: &[Type]) -> Result<Type, Fault>;
    /// Its meaning: the result on every rank, from the operands on every rank.
    fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor>;
    /// The cotangents of its operands, from the result's: `None` where none passes or none is wanted. `x` and `y` are
    /// values of the forward, read through `e` by need; `dy` and what it yields are values of the backward.
    ///
    /// Errors: what does not fit.
    fn vjp(&self, e: &mut Emit, x: &[Value], y: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault>;
    /// Small functions `@f` that use it, from which tests draw.
    fn samples() -> Vec<String>;
}

macro_rules! ops {
    ($($name:ident),+ $(,)?) => {
        /// A primitive op.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op { $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)+ }

        impl Op {
            /// The op that a mnemonic and its attributes spell.
            ///
            /// Errors: `Name` for an unknown mnemonic; what the op itself finds wrong.
            pub fn read(mnemonic: &str, mut attrs: Attrs) -> Result<Op, Fault> {
                $(if $name::mnemonics().contains(&mnemonic) {
                    let op = $name::read(mnemonic, &mut attrs)?;
                    attrs.finish(mnemonic)?;
                    return Ok(Op::$name(op));
                })+
                Err(Fault::new(Code::Name, format!("there is no op `{mnemonic}`")).help("docs/ops.md lists them; a function is called with `call @name(…)`"))
            }

            /// The mnemonic and the attributes as the text spells them.
            pub fn write(&self) -> (&'static str, Attrs) {
                match self { $(Op::$name(op) => op.write(),)+ }
            }

            /// The type of the result for operands of these types.
            ///
            /// Errors: what does not fit.
            pub fn infer(&self, x: &[Type]) -> Result<Type, Fault> {
                match self { $(Op::$name(op) => op.infer(x),)+ }
            }

            /// The result on every rank. The operands must be of the types that `infer` accepted.
            pub fn eval(&self, ranks: &[Vec<&Tensor>], to: &Type) -> Vec<Tensor> {
                match self { $(Op::$name(op) => op.eval(ranks, to),)+ }
            }

            /// The cotangents of the operands from the result's; see [`OpDef::vjp`].
            ///
            /// Errors: what does not fit.
            pub fn vjp(&self, e: &mut Emit, x: &[Value], y: Value, dy: Local, wanted: &[bool]) -> Result<Cotangents, Fault> {
                match self { $(Op::$name(op) => op.vjp(e, x, y, dy, wanted),)+ }
            }

            /// Every mnemonic, in the order of the documents.
            pub fn mnemonics() -> Vec<&'static str> {
                [$($name::mnemonics()),+].concat()
            }

            /// Small functions from which tests draw: of each op, by mnemonic family.
            pub fn samples() -> Vec<String> {
                [$($name::samples()),+].concat()
            }
        }

        $(impl From<$name> for Op { fn from(op: $name) -> Op { Op::$name(op) } })+
    };
}

ops! {
    Constant, Iota, Pointwise, Cast, Copy, Reduce, ArgMax, KthLargest, Einsum, Rearrange, Slice, Concat,
    Gather, ScatterAdd, UpdateSlice, CollectivePermute, AllReduce, AllGather, ReduceScatter,
}

/// The axes of each list, and the result's.
fn axes_of(inputs: &[&[crate::axes::Group]], output: &[crate::axes::Group]) -> crate::Axes {
    crate::Axes { inputs: inputs.iter().map(|g| g.to_vec()).collect(), output: output.to_vec() }
}

/// Applies a local op rank by rank.
fn each(ranks: &[Vec<&Tensor>], f: impl Fn(&[&Tensor]) -> Tensor) -> Vec<Tensor> {
    ranks.iter().map(|x| f(x)).collect()
}

/// Checks the number of operands.
fn arity(mnemonic: &str, x: &[Type], n: usize) -> Result<(), Fault> {
    if x.len() == n {
        return Ok(());
    }
    Err(Fault::new(Code::Arity, format!("`{mnemonic}` takes {}, not {}", crate::fault::count(n, "operand"), x.len())))
}

/// Checks that a type is of a wanted dtype.
fn want(mnemonic: &str, what: &str, ty: &Type, ok: bool, need: &str) -> Result<(), Fault> {
    if ok {
        return Ok(());
    }
    Err(Fault::new(Code::Dtype, format!("{what} of `{mnemonic}` must be {need}, it is {ty}")))
}

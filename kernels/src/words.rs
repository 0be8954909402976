//! Words of CubeCL's compiler for the CPU that are ours, with their ways to LLVM. Elsewhere they are nothing.
//!
//! `prefetch` asks for memory ahead of its use. Out-of-order cores look a few hundred instructions ahead, and at the end of each
//! short row a branch that was not foreseen ends that: a product of few rows left half of the memory's bandwidth unused (11.5
//! instead of 17.6 GB/s of 20.4 for rows of 576 bf16 on two cores of an Emerald Rapids).
//!
//! `zip` lays lanes of two vectors by turns: log2(N) rounds of it turn N vectors on their side, in registers.
//!
//! `hide` keeps from LLVM how a number came about. Knowing that a place is a remainder, it divides again at each step of the
//! innermost loop.

use cubecl::prelude::*;

use crate::bind::{Buffers, Slot, Storage};

/// Asks for the line of the element at `at`, which need not exist. Nothing where the build lacks the CPU.
#[cube]
pub(crate) fn prefetch(operands: &Buffers, at: usize, #[comptime] slot: Slot) {
    if comptime![slot.storage == Storage::F32] {
        ask::<f32>(operands.f32s.index(slot.index), at);
    } else if comptime![slot.storage == Storage::Bf16] {
        ask::<u16>(operands.bf16s.index(slot.index), at);
    } else if comptime![slot.storage == Storage::F16] {
        ask::<half::f16>(operands.f16s.index(slot.index), at);
    }
}

#[cube]
#[allow(unused_variables)]
fn ask<E: CubePrimitive>(from: &[E], at: usize) {
    intrinsic!(|scope| {
        #[cfg(feature = "cpu")]
        {
            // SAFETY: the pointer is never read through.
            let place = unsafe { from.__expand_get_unchecked_method(scope, at) };
            let place = place.value(scope);
            let op = on_cpu::PrefetchOp::new(scope.ctx_mut(), place);
            scope.register(&op);
        }
    })
}

/// The same place, found once: on the CPU LLVM knows nothing more of it.
#[cube]
pub(crate) fn fixed(place: usize, #[comptime] cpu: bool) -> usize {
    if cpu { hide(place) } else { place }
}

/// The same place, of which LLVM knows nothing more.
#[cube]
fn hide(number: usize) -> usize {
    intrinsic!(|scope| {
        #[cfg(feature = "cpu")]
        {
            let number = number.read_value(scope);
            let op = on_cpu::HideOp::new(scope.ctx_mut(), number);
            scope.register_with_result(&op).into()
        }
        #[cfg(not(feature = "cpu"))]
        {
            let _ = scope;
            number
        }
    })
}

/// Lanes of two vectors by turns: of their lower halves, or of their upper ones.
#[cube]
#[allow(unused_variables)]
fn zip<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] upper: bool) -> Vector<f32, N> {
    intrinsic!(|scope| {
        #[cfg(feature = "cpu")]
        {
            let (a, b) = (a.read_value(scope), b.read_value(scope));
            if upper {
                let op = on_cpu::ZipUpperOp::new(scope.ctx_mut(), a, b);
                scope.register_with_result(&op).into()
            } else {
                let op = on_cpu::ZipLowerOp::new(scope.ctx_mut(), a, b);
                scope.register_with_result(&op).into()
            }
        }
        #[cfg(not(feature = "cpu"))]
        {
            let _ = scope;
            a
        }
    })
}

/// `N` vectors turned on their side: lane `i` of vector `j` becomes lane `j` of vector `i`. Only on the CPU.
#[cube]
pub(crate) fn turn<N: Size>(x: &mut Array<Vector<f32, N>>) {
    let lanes = N::value();
    let mut y = Array::<Vector<f32, N>>::new(lanes);
    // Each round moves one bit of a place from the vector's number to the lane's, and one back.
    #[unroll]
    for _ in 0..comptime![lanes.ilog2() as usize] {
        #[unroll]
        for i in 0..comptime![lanes / 2] {
            y[comptime![2 * i]] = zip::<N>(x[i], x[comptime![i + lanes / 2]], false);
            y[comptime![2 * i + 1]] = zip::<N>(x[i], x[comptime![i + lanes / 2]], true);
        }
        #[unroll]
        for i in 0..lanes {
            x[i] = y[i];
        }
    }
}

#[cfg(feature = "cpu")]
mod on_cpu {
    use cubecl_llvm::shared::to_llvm::prelude::*;

    /// Lanes of the lower halves of two vectors by turns.
    #[cube_op(name = "omchat.zip_lower")]
    #[result_ty(same_as = a)]
    pub(super) struct ZipLowerOp {
        pub(super) a: Value,
        pub(super) b: Value,
    }

    /// Lanes of the upper halves of two vectors by turns.
    #[cube_op(name = "omchat.zip_upper")]
    #[result_ty(same_as = a)]
    pub(super) struct ZipUpperOp {
        pub(super) a: Value,
        pub(super) b: Value,
    }

    /// Puts one of LLVM's shuffles in the place of an operation on `a` and `b`.
    fn shuffled(
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        (op, a, b): (Ptr<Operation>, Value, Value),
        upper: bool,
    ) -> Result<()> {
        let lanes = a.get_type(ctx).deref(ctx).downcast_ref::<LlvmVectorType>().map_or(1, |v| v.num_elements()) as i32;
        let first = if upper { lanes / 2 } else { 0 };
        let mask = (0..lanes).map(|i| first + i / 2 + i % 2 * lanes).collect();
        let shuffle = llvm::ShuffleVectorOp::new(ctx, a, b, mask);
        rewriter.insert_op(ctx, &shuffle);
        rewriter.replace_operation_with_values(ctx, op, vec![shuffle.get_result(ctx)]);
        Ok(())
    }

    #[op_interface_impl]
    impl ToLLVMDialect for ZipLowerOp {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let (a, b) = (self.a(ctx), self.b(ctx));
            shuffled(ctx, rewriter, (self.get_operation(), a, b), false)
        }
    }

    #[op_interface_impl]
    impl ToLLVMDialect for ZipUpperOp {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let (a, b) = (self.a(ctx), self.b(ctx));
            shuffled(ctx, rewriter, (self.get_operation(), a, b), true)
        }
    }

    /// Asks for the line of a pointer.
    #[cube_op(name = "omchat.prefetch")]
    #[result_ty(none)]
    pub(super) struct PrefetchOp {
        pub(super) place: Value,
    }

    /// A number passed on.
    #[cube_op(name = "omchat.hide")]
    #[result_ty(same_as = number)]
    pub(super) struct HideOp {
        pub(super) number: Value,
    }

    #[op_interface_impl]
    impl ToLLVMDialect for HideOp {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let number = self.number(ctx);
            let ty = number.get_type(ctx);
            let hidden = llvm::InlineAsmOp::new(ctx, ty, vec![number], "", "=r,0", false);
            rewriter.insert_op(ctx, &hidden);
            rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![hidden.get_result(ctx)]);
            Ok(())
        }
    }

    #[op_interface_impl]
    impl ToLLVMDialect for PrefetchOp {
        fn rewrite(&self, ctx: &mut Context, rewriter: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
            let place = self.place(ctx);
            // To be read, kept as near as can be, data.
            let words = [0, 3, 1].map(|word| {
                let op = i32_const_op(ctx, word);
                rewriter.insert_op(ctx, &op);
                op.get_result(ctx)
            });
            let void = VoidType::get(ctx).into();
            let call = call_op(ctx, "llvm.prefetch.p0", void, [&[place][..], &words].concat());
            rewriter.insert_op(ctx, &call);
            rewriter.erase_operation(ctx, self.get_operation());
            Ok(())
        }
    }
}

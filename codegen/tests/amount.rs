//! Bytes and FLOPs of pieces of work, against counts by hand.
#![allow(clippy::unwrap_used)]

use omchat_codegen::{Amount, At, Body, Fold, Kind, Nest, Read, Seen, Start, Step, Work, Write};
use omchat_ir::{Dtype, Scalar, Type};

fn read(operand: usize, dtype: Dtype, offset: usize, strides: &[usize]) -> Read {
    Read { operand, dtype, offset, strides: strides.to_vec(), at: None }
}

fn write(dtype: Dtype, strides: &[usize]) -> Write {
    Write { result: 0, dtype, offset: 0, strides: strides.to_vec(), at: None }
}

fn float(read: usize) -> Step {
    Step::Read { read, kind: Kind::Float }
}

fn apply(f: Scalar, args: &[usize], of: Kind) -> Step {
    Step::Apply { f, args: args.to_vec(), of }
}

fn map(kept: &[usize], reads: Vec<Read>, steps: Vec<Step>, write: Write) -> Work {
    let body = Body { results: vec![steps.len() - 1], steps };
    let writes = vec![write];
    Work::Nest(Nest { kept: kept.to_vec(), folded: vec![], fold: None, reads, body, epilogue: Body::default(), writes })
}

fn function(name: &str, operands: &[(Dtype, &[usize])], results: &[(Dtype, &[usize])]) -> Work {
    let types = |list: &[(Dtype, &[usize])]| list.iter().map(|(d, s)| Type::new(*d, s.to_vec())).collect();
    Work::Function { name: name.into(), binds: Default::default(), operands: types(operands), results: types(results) }
}

fn amount(read: u64, written: u64, flops: u64) -> Amount {
    Amount { read, written, flops }
}

#[test]
fn an_einsum_reads_each_operand_once() {
    // y[2, 3] = x[2, 4] · w[3, 4] + b[3]: 24 products and 24 sums, 6 biases.
    let body = Body { steps: vec![float(0), float(1), apply(Scalar::Mul, &[0, 1], Kind::Float)], results: vec![2] };
    let add = apply(Scalar::Add, &[0, 1], Kind::Float);
    let epilogue = Body { steps: vec![Step::Folded { kind: Kind::Float }, float(2), add], results: vec![2] };
    let work = Work::Nest(Nest {
        kept: vec![2, 3],
        folded: vec![4],
        fold: Some(Fold::Sum),
        reads: vec![
            read(0, Dtype::F32, 0, &[4, 0, 1]),
            read(1, Dtype::Bf16, 0, &[0, 4, 1]),
            read(2, Dtype::F32, 0, &[0, 1, 0]),
        ],
        body,
        epilogue,
        writes: vec![write(Dtype::Bf16, &[3, 1])],
    });
    assert_eq!(Amount::of(&work).unwrap(), amount(8 * 4 + 12 * 2 + 3 * 4, 6 * 2, 48 + 6));
    assert_eq!(Amount::of(&work).unwrap().bytes(), 68 + 12);
}

#[test]
fn views_of_one_operand_share_what_they_overlap() {
    let twice = |a: Read, b: Read| {
        map(
            &[5, 4],
            vec![a, b],
            vec![float(0), float(1), apply(Scalar::Add, &[0, 1], Kind::Float)],
            write(Dtype::F32, &[4, 1]),
        )
    };
    let read_of = |w: &Work| Amount::of(w).unwrap().read;
    // The two halves of rows of 8, as rope reads them: 40 elements. Rows 0..5 and 1..6 of 4: 24 elements.
    assert_eq!(read_of(&twice(read(0, Dtype::F32, 0, &[8, 1]), read(0, Dtype::F32, 4, &[8, 1]))), 40 * 4);
    assert_eq!(read_of(&twice(read(0, Dtype::F32, 0, &[4, 1]), read(0, Dtype::F32, 4, &[4, 1]))), 24 * 4);
    // A window of 4 that slides by one over 8 elements; a scalar beside rows.
    assert_eq!(read_of(&twice(read(0, Dtype::F32, 0, &[1, 1]), read(1, Dtype::Bf16, 0, &[0, 0]))), 8 * 4 + 2);
}

#[test]
fn integers_casts_and_copies_compute_nothing() {
    let steps = vec![
        float(0),
        Step::Round { arg: 0, to: Dtype::Bf16 },
        Step::Index { axis: 0 },
        Step::Int { value: 3 },
        apply(Scalar::Add, &[2, 3], Kind::Int),
        Step::Convert { arg: 4, to: Kind::Float },
        apply(Scalar::Mul, &[1, 5], Kind::Float),
    ];
    let work = map(&[6], vec![read(0, Dtype::F32, 0, &[1])], steps, write(Dtype::F32, &[1]));
    assert_eq!(Amount::of(&work).unwrap(), amount(24, 24, 6));
    let copy = map(&[6], vec![read(0, Dtype::F32, 0, &[1])], vec![float(0)], write(Dtype::Bf16, &[1]));
    assert_eq!(Amount::of(&copy).unwrap(), amount(24, 12, 0));
    let nothing = map(&[0, 6], vec![read(0, Dtype::F32, 0, &[6, 1])], vec![float(0)], write(Dtype::F32, &[6, 1]));
    assert_eq!(Amount::of(&nothing).unwrap(), Amount::default());
}

#[test]
fn a_gather_reads_rows_by_id_and_an_update_its_start() {
    let gather = |ids: usize| {
        let at = At { operand: 1, offset: 0, strides: vec![1, 0], size: 7, stride: 3 };
        let rows = Read { at: Some(at), ..read(0, Dtype::F32, 0, &[0, 1]) };
        let mut to = write(Dtype::F32, &[3, 1]);
        to.at = Some(Start { operand: 2, last: 4, stride: 3 });
        Amount::of(&map(&[ids, 3], vec![rows], vec![float(0)], to)).unwrap()
    };
    assert_eq!(gather(5), amount(5 * 3 * 4 + 5 * 4 + 4, 5 * 3 * 4, 0));
    // More ids than rows: no row is read twice.
    assert_eq!(gather(100), amount(7 * 3 * 4 + 100 * 4 + 4, 100 * 3 * 4, 0));
}

const E: Dtype = Dtype::Bf16;

/// B = 1, H = 2, G = 3, T = 5, S = 7, D = 4: 24 · 5 · 7 / 4 = 210 pairs of heads, queries and keys.
fn attention(name: &str, back: bool, results: &[(Dtype, &[usize])]) -> Work {
    let mut operands: Vec<(Dtype, &[usize])> = vec![
        (E, &[1, 2, 3, 5, 4]),
        (E, &[1, 2, 7, 4]),
        (E, &[1, 2, 7, 4]),
        (Dtype::I32, &[1, 5]),
        (Dtype::I32, &[1, 5]),
        (Dtype::I32, &[1, 7]),
    ];
    if back {
        operands.extend([(Dtype::F32, &[1, 2, 3, 5][..]), (Dtype::F32, &[1, 2, 3, 5][..]), (E, &[1, 2, 3, 5, 4][..])]);
    }
    function(name, &operands, results)
}

#[test]
fn attention_counts_its_products() {
    let (q, kv, places) = (120 * 2, 56 * 2, (5 + 5 + 7) * 4);
    let forward = attention("attention", false, &[(E, &[1, 2, 3, 5, 4]), (Dtype::F32, &[1, 2, 3, 5])]);
    // q·k and p·v: 2 products of 4 for each of 210.
    let whole = amount(q + 2 * kv + places, 120 * 2 + 30 * 4, 2 * 2 * 4 * 210);
    assert_eq!(Amount::of(&forward).unwrap(), whole);
    // Three queries see one key, two see two: 7 of 35 pairs, and only 2 of 7 keys are read.
    let seen = Amount::seen(&forward, Seen { pairs: 7, keys: 2 }).unwrap();
    assert_eq!(seen, amount(q + 2 * kv * 2 / 7 + places, whole.written, whole.flops / 5));
    assert_eq!(Amount::seen(&forward, Seen { pairs: 35, keys: 7 }).unwrap(), whole);

    // A carry is read once and written once, and costs no product.
    let mut onto = attention("attention_onto", false, &[(Dtype::F32, &[1, 2, 3, 5, 4]), (Dtype::F32, &[1, 2, 3, 5])]);
    let Work::Function { operands, results, .. } = &mut onto else { unreachable!() };
    operands.extend(results.clone());
    let carry = 120 * 4 + 30 * 4;
    assert_eq!(Amount::of(&onto).unwrap(), amount(q + 2 * kv + places + carry, carry, whole.flops));
    let seen = Amount::seen(&onto, Seen { pairs: 7, keys: 2 }).unwrap();
    assert_eq!(seen, amount(q + 2 * kv * 2 / 7 + places + carry, carry, whole.flops / 5));

    let back = q + 2 * kv + places + 2 * 30 * 4 + q;
    let dq = attention("attention_dq", true, &[(Dtype::F32, &[1, 2, 3, 5, 4])]);
    assert_eq!(Amount::of(&dq).unwrap(), amount(back, 120 * 4, 3 * 2 * 4 * 210));
    let dkv = attention("attention_dkv", true, &[(Dtype::F32, &[1, 2, 7, 4]), (Dtype::F32, &[1, 2, 7, 4])]);
    assert_eq!(Amount::of(&dkv).unwrap(), amount(back, 2 * 56 * 4, 4 * 2 * 4 * 210));
}

#[test]
fn other_functions_count_their_ops() {
    let rows: &[usize] = &[2, 3];
    let norm =
        function("rms_norm", &[(Dtype::F32, rows), (Dtype::F32, &[3]), (Dtype::F32, &[])], &[(Dtype::F32, rows)]);
    // Squares 6, sums 6, means 2, + eps 2, rsqrt 2, units 6, times the weight 6.
    assert_eq!(Amount::of(&norm).unwrap(), amount(6 * 4 + 3 * 4 + 4, 6 * 4, 30));
    // A weight that lies packed beside f32 activations: half its bytes, the same operations.
    let packed = function("rms_norm", &[(Dtype::F32, rows), (E, &[3]), (Dtype::F32, &[])], &[(Dtype::F32, rows)]);
    assert_eq!(Amount::of(&packed).unwrap(), amount(6 * 4 + 3 * 2 + 4, 6 * 4, 30));
    let loss = function(
        "linear_cross_entropy",
        &[(E, &[5, 4]), (E, &[11, 4]), (Dtype::I32, &[5])],
        &[(Dtype::F32, &[5]), (Dtype::F32, &[5])],
    );
    assert_eq!(Amount::of(&loss).unwrap(), amount(20 * 2 + 44 * 2 + 20, 40, 2 * 5 * 4 * 11));
    // What an attention sees is nothing to other work.
    assert_eq!(Amount::seen(&norm, Seen { pairs: 1, keys: 1 }).unwrap(), Amount::of(&norm).unwrap());
}

#[test]
fn primitives_that_are_work_of_their_own() {
    let kth = Work::KthLargest { rows: 3, width: 10, k: 2 };
    assert_eq!(Amount::of(&kth).unwrap(), amount(120, 12, 30));
    // 6 rows of 4 onto a table of 9: each may go to a row of its own, which is read and written.
    let add = |height, tokens| Work::ScatterAdd { dtype: E, height, width: 4, tokens, ids: 0, rows: 1 };
    assert_eq!(Amount::of(&add(9, 6)).unwrap(), amount(6 * 4 + 2 * 24 * 2, 24 * 2, 24));
    assert_eq!(Amount::of(&add(2, 6)).unwrap(), amount(6 * 4 + 24 * 2 + 8 * 2, 8 * 2, 24));
}

#[test]
fn an_unknown_function_is_told() {
    let error = Amount::of(&function("no_such", &[(E, &[1])], &[(E, &[1])])).unwrap_err().to_string();
    assert!(error.contains("there is no function @no_such"), "{error}");
    let error = Amount::of(&function("silu", &[(E, &[1])], &[(E, &[1])])).unwrap_err().to_string();
    assert!(error.contains("silu"), "{error}");
}

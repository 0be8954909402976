//! A model from nothing: every tensor that a configuration asks for, drawn from a seed.

use omchat_model::OmChatConfig;
use omchat_model::weights::{TensorSpec, tensors};
use omchat_recipe::scenes::Random;

/// Deviation of the rows of the embedding: as large as what the layers add to them at first.
const EMBEDDING: f64 = 0.5;
/// Deviation of the output projection, so that a fresh model finds all ids alike.
const HEAD: f64 = 0.02;
/// Deviation of the class token and the positions of a tower.
const POSITION: f64 = 0.2;

/// Each tensor of a configuration with its first numbers, row-major.
///
/// Linears are normal with deviation 1 / sqrt(inputs); those that end a branch of L layers are smaller by sqrt(2 L), so
/// that the residual stream keeps its size (GPT-2). Norms and layer scales are 1, biases 0.
///
/// The same seed yields the same numbers on every machine, whatever the order in which tensors are asked for: each has
/// a stream of its own.
pub fn initial(config: &OmChatConfig, seed: u64) -> Vec<(TensorSpec, Vec<f32>)> {
    let one = |(index, spec): (usize, TensorSpec)| {
        let count = spec.shape.iter().product();
        let data = match rule(config, &spec) {
            Rule::All(value) => vec![value; count],
            Rule::Normal(deviation) => normal(&mut Random::of(seed, index as u64), count, deviation),
        };
        (spec, data)
    };
    tensors(config).into_iter().enumerate().map(one).collect()
}

/// How a tensor begins.
enum Rule {
    /// Every number is this one.
    All(f32),
    /// Normal around 0 with this deviation.
    Normal(f64),
}

fn rule(config: &OmChatConfig, spec: &TensorSpec) -> Rule {
    let name = spec.name.as_str();
    let ends = |list: &[&str]| list.iter().any(|end| name.ends_with(end));
    if ends(&["embed_tokens.weight"]) {
        return Rule::Normal(EMBEDDING);
    }
    if ends(&["lm_head.weight"]) {
        return Rule::Normal(HEAD);
    }
    if ends(&["class_embedding", "position_embedding", "position_embedding.weight"]) {
        return Rule::Normal(POSITION);
    }
    if ends(&[".bias"]) {
        return Rule::All(0.0);
    }
    if spec.shape.len() < 2 {
        return Rule::All(1.0);
    }
    let inputs: usize = spec.shape.iter().skip(1).product();
    let layers = match name.starts_with("vision_tower.") {
        true => config.vision.as_ref().map_or(1, |v| v.layers),
        false => config.text.layers,
    };
    let last = ends(&["o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight", "out_proj.weight"]);
    let branch = if last { 2.0 * layers as f64 } else { 1.0 };
    Rule::Normal(1.0 / (inputs as f64 * branch).sqrt())
}

/// Normal numbers, two of each pair of uniform ones.
///
/// Source: Box, Muller 1958.
fn normal(random: &mut Random, count: usize, deviation: f64) -> Vec<f32> {
    let mut uniform = || ((random.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let mut out = Vec::with_capacity(count + 1);
    while out.len() < count {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        out.extend([radius * angle.cos(), radius * angle.sin()].map(|x| (x * deviation) as f32));
    }
    out.truncate(count);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_deviation_that_they_should() {
        let x = normal(&mut Random::of(1, 2), 20_001, 0.5);
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let square = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / x.len() as f64;
        assert!(x.len() == 20_001 && mean.abs() < 0.02 && (square.sqrt() - 0.5).abs() < 0.01, "{mean} {square}");
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let config = omchat_model::presets::mini();
        let norm = |list: &[(TensorSpec, Vec<f32>)]| list.iter().map(|(_, x)| f64::from(x[0])).sum::<f64>();
        let small = OmChatConfig {
            text: omchat_model::config::TextConfig { layers: 1, vocab: 7, ..config.text.clone() },
            ..config
        };
        let [a, b, c] = [3, 3, 4].map(|seed| norm(&initial(&small, seed)));
        assert!(a == b && a != c, "{a} {b} {c}");
    }
}

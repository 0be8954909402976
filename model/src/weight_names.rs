//! The released name behind each spelling of a tensor's name.
//!
//! Four spellings are read: the released one, the one before the release (`model.mm_projector.0.…`), plain
//! text-only checkpoints (`model.layers.…`), and what transformers 5 writes for the same modules.
//! Source: OmChat's converter and transformers' InternVL, Llava and SigLIP modules.

/// A tensor's released name, and its place where the file holds only a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReleasedName {
    /// The name in the released layout.
    pub name: String,
    /// 0, 1, 2 for the q, k, v rows of a fused tensor; nothing for a whole one.
    pub part: Option<usize>,
}

/// The released name of a tensor, whichever spelling the file uses.
///
/// `siglip` says that the tower is SigLIP, whose names transformers 5 shortens to something that would
/// otherwise read as the other tower's.
pub fn released_name(name: &str, siglip: bool) -> ReleasedName {
    let name = released_prefix(name);
    match name.strip_prefix("vision_tower.") {
        Some(rest) if siglip => whole(siglip_name(rest)),
        Some(rest) => intern_vit_name(rest),
        None => whole(name),
    }
}

/// Whether any of a checkpoint's names belongs to a SigLIP tower.
pub fn is_siglip<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name.contains("vision_tower.") && name.contains(".self_attn.out_proj."))
}

/// Whether a checkpoint may hold a tensor that its configuration does not ask for.
///
/// Pooling heads and final norms come after the features that are used; tables of frequencies and position ids
/// follow from the configuration.
pub fn may_be_extra(name: &str, tied: bool) -> bool {
    let siglip = "vision_tower.vision_model.";
    let of_siglip = |part: &str| name.strip_prefix(siglip).is_some_and(|rest| rest.starts_with(part));
    of_siglip("post_layernorm.")
        || of_siglip("head.")
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".position_ids")
        || (tied && name == "language_model.lm_head.weight")
}

fn whole(name: String) -> ReleasedName {
    ReleasedName { name, part: None }
}

/// The prefixes, longest first: the first that fits is replaced.
const PREFIXES: &[(&str, &str)] = &[
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.vision_tower.image_tower.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.language_model.", "language_model.model."),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
];

fn released_prefix(name: &str) -> String {
    let fits = |(from, to): &(&str, &str)| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    PREFIXES.iter().find_map(fits).unwrap_or_else(|| name.to_owned())
}

fn siglip_name(rest: &str) -> String {
    let inner = rest.strip_prefix("vision_model.").unwrap_or(rest);
    format!("vision_tower.vision_model.{inner}")
}

/// transformers' words for InternViT, and the released ones.
const INTERNVL: &[(&str, &str)] = &[
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
    ("encoder.layer.", "encoder.layers."),
    (".attention.projection_layer.", ".attn.proj."),
    (".attention.q_norm.", ".attn.q_norm."),
    (".attention.k_norm.", ".attn.k_norm."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
];

fn intern_vit_name(rest: &str) -> ReleasedName {
    let mut rest = rest.to_owned();
    for (from, to) in INTERNVL {
        rest = rest.replace(from, to);
    }
    for (from, to) in [(".lambda_1", ".ls1"), (".lambda_2", ".ls2")] {
        if let Some(stem) = rest.strip_suffix(from) {
            rest = format!("{stem}{to}");
        }
    }
    for (part, word) in [".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."].iter().enumerate() {
        if rest.contains(word) {
            let name = format!("vision_tower.{}", rest.replace(word, ".attn.qkv."));
            return ReleasedName { name, part: Some(part) };
        }
    }
    whole(format!("vision_tower.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, siglip: bool, to: &str) {
        assert_eq!(released_name(from, siglip).name, to);
        assert_eq!(released_name(to, siglip), whole(to.to_owned()), "a released name stays");
    }

    #[test]
    fn spellings_before_the_release() {
        check("model.vision_tower.vision_tower.encoder.layers.3.ls1", false, "vision_tower.encoder.layers.3.ls1");
        check("model.mm_projector.2.bias", false, "multi_modal_projector.linear_2.bias");
        check("model.layers.0.mlp.up_proj.weight", false, "language_model.model.layers.0.mlp.up_proj.weight");
        check("lm_head.weight", false, "language_model.lm_head.weight");
        for inner in ["vision_tower", "image_tower"] {
            let name = format!("model.vision_tower.{inner}.vision_model.embeddings.patch_embedding.bias");
            check(&name, true, "vision_tower.vision_model.embeddings.patch_embedding.bias");
        }
    }

    #[test]
    fn spellings_of_transformers() {
        check("model.vision_tower.embeddings.cls_token", false, "vision_tower.embeddings.class_embedding");
        check("vision_tower.encoder.layer.1.lambda_2", false, "vision_tower.encoder.layers.1.ls2");
        check(
            "vision_tower.embeddings.position_embedding.weight",
            true,
            "vision_tower.vision_model.embeddings.position_embedding.weight",
        );
        let k = released_name("vision_tower.encoder.layer.1.attention.k_proj.weight", false);
        assert_eq!((k.name.as_str(), k.part), ("vision_tower.encoder.layers.1.attn.qkv.weight", Some(1)));
    }
}

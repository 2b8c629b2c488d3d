"""Defaults of networks with a likelihood or a formula: sizes and choices that saved configurations may leave out."""

from tests.helpers.defaults import defaults_in

MODULES = ("augmented_flow", "calibration", "conditionals", "continuous_transformer", "coupling_flow", "elementwise")
MODULES += ("fixed_point", "flow_layers", "flow_prior", "interval", "lipschitz", "priors", "residual_determinants")
MODULES += ("residual_flow", "transformer_flow", "variance_head", "vq")
SCALES = {"elementwise": "affine", "components": 8}
DEFAULTS = {
    "AugmentedFlowModel": {
        "flow": "CouplingFlowModel", "extra_channels": 1, "dequantise": False, "hidden_channels": 32,
        "network_depth": 1,
    },
    "AugmentedFlowModel.forward": {"bin_width": 0.0},
    "AugmentedFlowModel.inverse": {"guidance_scale": 1.0},
    "CalibrationModel": {"num_images": 0},
    "ContinuousTransformerModel": {
        "sample_size": 28, "in_channels": 1, "patch_size": 4, "num_layers": 4, "hidden_size": 128,
        "num_attention_heads": 4, "head_size": 128, "head_layers": 3, "random_order": False,
    },
    "ContinuousTransformerModel.draw": {
        "guidance_scale": 1.0, "temperature": 1.0, "num_known": 0, "num_steps": 20, "use_cache": True,
    },
    "CouplingFlowModel": {
        "sample_size": 32, "in_channels": 3, "num_levels": 2, "layers_per_level": 8, "squeeze": 2, "masks": "channel",
        **SCALES, "mixing": "none", "actnorm": False, "split_prior": "conditional", "diagonal_scale": False,
        "network": "conv", "hidden_channels": 64, "network_depth": 2,
    },
    "CouplingFlowModel.inverse": {"guidance_scale": 1.0},
    "FlowLevel.divide": {"squeezed": True},
    "MapParameters.forward": {"maps": slice(None)},
    "FlowPriorModel": {"num_layers": 6, "hidden_channels": 128, **SCALES},
    "FlowPriorModel.sample": {"temperature": 1.0},
    "GaussianMixturePriorModel": {"num_components": 1, "covariance": "full"},
    "GaussianMixturePriorModel.sample": {"temperature": 1.0},
    "VampPriorModel": {"sample_size": 28, "in_channels": 1, "num_pseudo_inputs": 500},  # of Tomczak & Welling 2018
    "ResidualFlowModel": {
        "sample_size": 8, "in_channels": 1, "num_layers": 8, "kind": "residual", "squeeze": 1, "network": "conv",
        "hidden_channels": 64, "network_depth": 2, "slope": 0.9, "log_det": "exact",
    },
    "ResidualFlowModel.inverse": {"guidance_scale": 1.0},
    "TransformerFlowModel": {
        "sample_size": 32, "in_channels": 3, "patch_size": 2, "num_blocks": 4, "layers_per_block": 4,
        "hidden_size": 128, "num_attention_heads": 4, **SCALES, "head_size": 0,
    },
    "TransformerFlowModel.inverse": {"guidance_scale": 1.0},
    "VarianceHeadModel": {
        "sample_size": 32, "in_channels": 3, "patch_size": 2, "hidden_channels": 64, "num_blocks": 2,
        "norm_num_groups": 8,
    },
    "VQAutoencoderModel": {
        "sample_size": 28, "in_channels": 1, "out_channels": 1, "block_out_channels": (32, 64), "layers_per_block": 1,
        "latent_channels": 32, "num_vq_embeddings": 256,
        "ema_decay": 0.99,  # of van den Oord et al. 2017, appendix A.1
        "revival": 0.1,
    },
    "VQAutoencoderModel.decode": {"force_not_quantize": False},
}  # fmt: skip


def test_defaults_are_the_documented_ones():
    assert defaults_in("hfgen.models", MODULES) == DEFAULTS

"""The models of transformers for images, clips and sound, alone or with text."""

from __future__ import annotations

from tests.zoo.catalogue_transformers_sizes import (
    BART,
    DECODER,
    ENCODER,
    SIZE,
    SPEECH,
    STACKS,
    STAGES,
    TEXT_TOWER,
    VISION_TOWER,
    VIT,
    Row,
    audio_patches,
    clip,
    frames,
    ids_and_image,
    image,
    spectrogram,
    text_and_image,
    waveform,
)

VISION: tuple[Row, ...] = (
    ("beit", "BeitForImageClassification", image(32, 32), {**VIT, "use_relative_position_bias": True}),
    (
        "bit",
        "BitForImageClassification",
        image(64, 64),
        {"embedding_size": 16, "hidden_sizes": [24, 40], "depths": [1, 2], "num_groups": 4},
    ),
    ("convnext", "ConvNextForImageClassification", image(64, 64), {"hidden_sizes": [20, 28, 36, 44], "depths": [1, 2, 1, 1]}),
    (
        "convnextv2",
        "ConvNextV2ForImageClassification",
        image(64, 64),
        {"hidden_sizes": [20, 28, 36, 44], "depths": [1, 2, 1, 1]},
    ),
    (
        "cvt",
        "CvtForImageClassification",
        image(64, 64),
        {"embed_dim": [12, 24, 36], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    ),
    ("data2vec_vision", "Data2VecVisionForImageClassification", image(32, 32), VIT),
    ("deit", "DeiTForImageClassification", image(32, 32), VIT),
    (
        "detr",
        "DetrForObjectDetection",
        image(64, 64),
        {
            **STACKS,
            "d_model": 48,
            "num_queries": 9,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 12,
                "hidden_sizes": [16, 24, 40, 56],
                "depths": [1, 1, 2, 1],
                "out_features": ["stage4"],
            },
        },
    ),
    ("dinov2", "Dinov2ForImageClassification", image(32, 32), {**VIT, "mlp_ratio": 2}),
    ("dinov2_with_registers", "Dinov2WithRegistersForImageClassification", image(32, 32), {**VIT, "mlp_ratio": 2}),
    (
        "dpt",
        "DPTForDepthEstimation",
        image(32, 32),
        {
            **VIT,
            "neck_hidden_sizes": [12, 20, 28, 36],
            "fusion_hidden_size": 16,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "is_hybrid": False,
        },
    ),
    (
        "focalnet",
        "FocalNetForImageClassification",
        image(64, 64),
        {
            "image_size": 64,
            "embed_dim": 24,
            "hidden_sizes": [24, 48],
            "depths": [1, 2],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    (
        "glpn",
        "GLPNForDepthEstimation",
        image(64, 64),
        {
            "hidden_sizes": [12, 24, 36, 48],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 20,
        },
    ),
    ("mobilenet_v1", "MobileNetV1ForImageClassification", image(64, 64), {"depth_multiplier": 0.25}),
    ("mobilenet_v2", "MobileNetV2ForImageClassification", image(64, 64), {"depth_multiplier": 0.35}),
    (
        "mobilevit",
        "MobileViTForImageClassification",
        image(64, 64),
        {"image_size": 64, "hidden_sizes": [24, 36, 48], "neck_hidden_sizes": [8, 12, 16, 20, 28, 32, 56]},
    ),
    ("mobilevitv2", "MobileViTV2ForImageClassification", image(64, 64), {"image_size": 64, "width_multiplier": 0.25}),
    (
        "poolformer",
        "PoolFormerForImageClassification",
        image(64, 64),
        {"hidden_sizes": [12, 20, 28, 36], "depths": [1, 1, 2, 1]},
    ),
    (
        "pvt_v2",
        "PvtV2ForImageClassification",
        image(64, 64),
        {"hidden_sizes": [12, 24, 36, 48], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]},
    ),
    (
        "regnet",
        "RegNetForImageClassification",
        image(64, 64),
        {"embedding_size": 12, "hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 2, 1], "groups_width": 8},
    ),
    (
        "resnet",
        "ResNetForImageClassification",
        image(64, 64),
        {"embedding_size": 12, "hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 2, 1]},
    ),
    (
        "segformer",
        "SegformerForSemanticSegmentation",
        image(64, 64),
        {
            "hidden_sizes": [12, 24, 36, 48],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 20,
        },
    ),
    ("swin", "SwinForImageClassification", image(64, 64), STAGES),
    ("swinv2", "Swinv2ForImageClassification", image(64, 64), STAGES),
    ("vit", "ViTForImageClassification", image(32, 32), VIT),
    ("vit_mae", "ViTMAEModel", image(32, 32), VIT),
    ("vivit", "VivitForVideoClassification", clip, {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    ("yolos", "YolosForObjectDetection", image(32, 32), {**VIT, "image_size": [32, 32], "num_detection_tokens": 9}),
)

AUDIO: tuple[Row, ...] = (
    (
        "audio_spectrogram_transformer",
        "ASTForAudioClassification",
        audio_patches,
        {**SIZE, "max_length": 40, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
    ),
    ("hubert", "HubertForCTC", waveform, SPEECH),
    ("sew", "SEWForCTC", waveform, {**SPEECH, "squeeze_factor": 2}),
    (
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        frames,
        {**BART, "input_feat_per_channel": 20, "conv_channels": 28, "max_source_positions": 60, "max_target_positions": 40},
    ),
    ("wav2vec2", "Wav2Vec2ForCTC", waveform, SPEECH),
    ("wavlm", "WavLMForCTC", waveform, {**SPEECH, "num_buckets": 16, "max_bucket_distance": 32}),
    (
        "whisper",
        "WhisperForConditionalGeneration",
        spectrogram,
        {**BART, "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": 40},
    ),
)

MULTIMODAL: tuple[Row, ...] = (
    ("blip", "BlipModel", text_and_image, {"text_config": TEXT_TOWER, "vision_config": VISION_TOWER, "projection_dim": 20}),
    ("clip", "CLIPModel", text_and_image, {"text_config": TEXT_TOWER, "vision_config": VISION_TOWER, "projection_dim": 20}),
    ("git", "GitForCausalLM", text_and_image, {**DECODER, "vision_config": VISION_TOWER}),
    (
        "siglip",
        "SiglipModel",
        ids_and_image,
        {"text_config": {**TEXT_TOWER, "hidden_size": 36, "projection_size": 36}, "vision_config": VISION_TOWER},
    ),
    (
        "vilt",
        "ViltForImagesAndTextClassification",
        text_and_image,
        {**ENCODER, "image_size": 32, "patch_size": 8, "num_images": 1},
    ),
)

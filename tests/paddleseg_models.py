"""PaddleSeg's models as small as their parameters allow, for tests of the command lines.

RUNS: name -> (parameters of `model`, number of outputs in training). The parameters are those of PaddleSeg's own
configs, with the smallest backbone that fits.
"""
from typing import Any

RESNET = {'type': 'ResNet18_vd', 'output_stride': 8}
RESNET50 = {'type': 'ResNet50_vd', 'output_stride': 8}
HRNET = {'type': 'HRNet_W18_Small_V1'}
B0 = {'type': 'MixVisionTransformer_B0'}
VIT = {'type': 'VisionTransformer', 'img_size': 64, 'embed_dim': 32, 'depth': 2, 'num_heads': 4}

RUNS: dict[str, tuple[dict[str, Any], int]] = {
    'OCRNet': ({'backbone': HRNET, 'backbone_indices': [0], 'ocr_mid_channels': 32, 'ocr_key_channels': 16}, 2),
    'FCN': ({'backbone': HRNET, 'backbone_indices': [-1]}, 1),
    'DeepLabV3P': ({'backbone': RESNET50, 'backbone_indices': [0, 3]}, 1),
    'DeepLabV3': ({'backbone': RESNET, 'aspp_out_channels': 16}, 1),
    'PSPNet': ({'backbone': RESNET, 'pp_out_channels': 16}, 2),
    'BiSeNetV2': ({}, 5),
    'BiseNetV1': ({'backbone': {'type': 'ResNet18_vd'}}, 3),
    'PPLiteSeg': ({'backbone': {'type': 'STDC1'}, 'arm_out_chs': [16, 16, 16], 'seg_head_inter_chs': [16, 16, 16],
                   'cm_out_ch': 16}, 3),
    'SegFormer': ({'backbone': B0, 'embedding_dim': 32}, 1),
    'FastSCNN': ({}, 2),
    'UNet': ({}, 1),
    'UNetPlusPlus': ({}, 1),
    'UNet3Plus': ({}, 1),
    'AttentionUNet': ({}, 1),
    'U2Netp': ({}, 7),
    'U2Net': ({}, 7),
    'DDRNet_23': ({}, 1),
    'ENet': ({}, 1),
    'HarDNet': ({}, 1),
    'SegNet': ({}, 1),
    'ESPNetV1': ({}, 1),
    'ESPNetV2': ({}, 2),
    'PPHumanSegLite': ({}, 1),
    'SINet': ({}, 1),
    'RTFormer': ({'base_channels': 16, 'spp_channels': 16, 'head_channels': 16}, 2),
    'LPSNet': ({'depths': [1, 1, 1, 1, 1], 'channels': [8, 8, 8, 8, 8], 'scale_ratios': [1.0, 0.25]}, 1),
    'ANN': ({'backbone': RESNET, 'inter_channels': 32, 'key_value_channels': 16}, 2),
    'CCNet': ({'backbone': RESNET}, 2),
    'DANet': ({'backbone': RESNET, 'backbone_indices': [2, 3]}, 4),
    'DMNet': ({'backbone': RESNET50, 'mid_channels': 32}, 2),
    'DNLNet': ({'backbone': RESNET50}, 2),
    'EMANet': ({'backbone': RESNET50, 'ema_channels': 32, 'gc_channels': 16}, 2),
    'ENCNet': ({'backbone': RESNET, 'mid_channels': 32}, 3),
    'FastFCN': ({'backbone': RESNET50, 'mid_channels': 32}, 3),
    'GCNet': ({'backbone': RESNET, 'gc_channels': 32}, 2),
    'GINet': ({'backbone': RESNET50}, 2),
    'GloRe': ({'backbone': RESNET50}, 2),
    'ISANet': ({'backbone': RESNET50, 'isa_channels': 32}, 2),
    'KNet': ({'backbone': RESNET, 'backbone_indices': [3], 'channels': 32, 'num_stages': 1,
              'kernel_generate_head_params': {'head_layer': 'FCNKernelHead', 'in_channels': 512, 'channels': 256,
                                              'num_classes': 19},
              'kernel_update_head_params': {'num_classes': 19, 'conv_kernel_size': 1}}, 2),
    'LRASPP': ({'backbone': {'type': 'MobileNetV3_small_x1_0'}}, 1),
    'MobileSeg': ({'backbone': {'type': 'MobileNetV3_small_x1_0'}}, 3),
    'PPMobileSeg': ({'backbone': {'type': 'MobileSeg_Tiny', 'inj_type': 'AAM', 'out_feat_chs': [32, 64, 128]}}, 1),
    'TopFormer': ({'backbone': {'type': 'TopTransformer_Tiny'}}, 1),
    'PFPNNet': ({'backbone': RESNET, 'backbone_indices': [0, 1, 2, 3], 'channels': 32,
                 'fpn_inplanes': [64, 128, 256, 512]}, 1),
    'SFNet': ({'backbone': {'type': 'ResNet18_vd'}, 'backbone_indices': [0, 1, 2, 3]}, 1),
    'STDCSeg': ({'backbone': {'type': 'STDC1'}}, 4),
    'UPerNet': ({'backbone': RESNET, 'backbone_indices': [0, 1, 2, 3], 'channels': 32}, 1),
    'PortraitNet': ({'backbone': {'type': 'MobileNetV2_x1_0'}}, 1),
    'SegNeXt': ({'backbone': {'type': 'MSCAN_T'}, 'decoder_cfg': {}}, 1),
    'GSCNN': ({'backbone': RESNET}, 4),
    'DecoupledSegNet': ({'backbone': RESNET, 'backbone_indices': [0, 3]}, 4),
    'PointRend': ({'backbone': RESNET, 'backbone_indices': [0, 1, 2, 3], 'fpn_inplanes': [64, 128, 256, 512],
                   'fpn_outplanes': 16, 'point_in_channels': [16], 'point_out_channels': 16, 'point_num_points': 64,
                   'PFN_in_channels': [16, 16, 16, 16], 'PFN_channels': 16}, 2),
    'HRNetW48Contrast': ({'backbone': HRNET, 'bb_channels': 240, 'drop_prob': 0.1, 'proj_dim': 16}, 2),
    'MaskFormer': ({'backbone': {'type': 'SwinTransformer_tiny_patch4_window7_224_maskformer'}}, 1),
    'SegmentationTransformer': ({'backbone': VIT, 'backbone_indices': [0, 1], 'head': 'naive'}, 2),
    'LinearSegmenter': ({'backbone': VIT}, 1),
    'MaskSegmenter': ({'backbone': VIT, 'h_embed_dim': 32, 'h_depth': 1, 'h_num_heads': 4}, 1),
}
# Losses of the models that need others than CrossEntropyLoss: of each output, its name or its parameters.
LOSSES: dict[str, list[str | dict[str, Any]]] = {
    'ENCNet': ['CrossEntropyLoss', 'CrossEntropyLoss', 'SECrossEntropyLoss'],
    'FastFCN': ['CrossEntropyLoss', 'CrossEntropyLoss', 'SECrossEntropyLoss'],
    'STDCSeg': ['OhemCrossEntropyLoss', 'OhemCrossEntropyLoss', 'OhemCrossEntropyLoss', 'DetailAggregateLoss'],
    'GSCNN': ['CrossEntropyLoss', 'EdgeAttentionLoss', {'type': 'BCELoss', 'edge_label': True}, 'DualTaskLoss'],
    'DecoupledSegNet': ['OhemCrossEntropyLoss', 'RelaxBoundaryLoss',
                        {'type': 'BCELoss', 'weight': 'dynamic', 'edge_label': True},
                        {'type': 'OhemEdgeAttentionLoss', 'edge_threshold': 0.5}],
    'PointRend': ['CrossEntropyLoss', 'PointCrossEntropyLoss'],
    'HRNetW48Contrast': ['CrossEntropyLoss', {'type': 'PixelContrastCrossEntropyLoss', 'max_views': 10}],
    'MaskFormer': [{'type': 'MaskFormerLoss', 'num_classes': 19}]
}

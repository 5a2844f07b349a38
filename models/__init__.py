"""The network: HRNet backbone, OCR head, scale attention, and the hierarchical model made of them."""

"""LoRAs that act above the cut: their files, and handing over in plain diffusers pipelines."""

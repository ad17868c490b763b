"""Files of fitted estimators: one JSON manifest, and arrays in the safetensors format."""

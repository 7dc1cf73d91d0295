"""What a trainer needs beyond the loader: one module for each, which alone imports that trainer."""

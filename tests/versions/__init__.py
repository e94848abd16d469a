"""Every supported torch: one environment for each, and a part of the suite that runs in it."""

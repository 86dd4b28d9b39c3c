"""What measures and shows the pack: set-up, server, lab, demo and benchmarks."""

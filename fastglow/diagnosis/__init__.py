"""What `fastglow doctor` checks: the machine, the packages, the bundled voices, and each operation against float64."""

"""What lazypv needs of the computer it runs on: kernels compiled beforehand, and a look at what slows it down."""

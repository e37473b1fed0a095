"""Exchange and correlation: functionals and their integration over a grid."""

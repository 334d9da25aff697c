"""The toy studies of the paper (§3, Appendix C), and a language whose uncertainty is known; one module per study."""

"""Every file here is one algorithm of attention."""

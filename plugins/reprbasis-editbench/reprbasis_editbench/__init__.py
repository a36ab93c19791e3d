"""Did an edit work, does it reach what was not fitted, and what did it break?"""

from reprbasis.testing import AlignerContract


class TestProcrustes(AlignerContract):
    name = "procrustes"


class TestScaledProcrustes(AlignerContract):
    name = "procrustes-scaled"
    tolerance = 0.01


class TestReducedProcrustes(AlignerContract):
    name, config = "procrustes-pca", {"variance": 1.0}


class TestLOrtho(AlignerContract):
    name = "l-ortho"


class TestAffine(AlignerContract):
    name = "affine"


class TestRidge(AlignerContract):
    name = "ridge"


class TestCCA(AlignerContract):
    name, config = "cca", {"shrinkage": 0.0}


class TestRelative(AlignerContract):
    name = "relative"


class TestUnembedding(AlignerContract):
    name, means = "unembedding", False

//! Temporary.
use burn::tensor::{Bool, Tensor, TensorData, activation};

fn attend(q: Tensor<3>, kv: Tensor<3>, heads: usize, padding: &[usize], causal: bool) -> Tensor<3> {
    let [b, tq, d] = q.dims();
    let tk = kv.dims()[1];
    let w = d / heads;
    let split = |x: Tensor<3>, t: usize| x.reshape([b, t, heads, w]).swap_dims(1, 2);
    let q = split(q, tq);
    let k = split(kv.clone().narrow(2, 0, d), tk);
    let v = split(kv.narrow(2, d, d), tk);
    let scores = q.matmul(k.swap_dims(2, 3)) / (w as f32).sqrt();
    let mut mask = vec![false; b * tq * tk];
    for bb in 0..b {
        for i in 0..tq {
            for j in 0..tk {
                let pad = j < padding.get(bb).copied().unwrap_or(0);
                let future = causal && j > tk - tq + i;
                mask[(bb * tq + i) * tk + j] = pad || future;
            }
        }
    }
    let mask = Tensor::<4, Bool>::from_data(TensorData::new(mask, [b, 1, tq, tk]), &scores.device())
        .expand([b, heads, tq, tk]);
    let p = activation::softmax(scores.mask_fill(mask.clone(), -1e30), 3).mask_fill(mask, 0.0);
    p.matmul(v).swap_dims(1, 2).reshape([b, tq, d])
}
/// T
pub fn self_attention(qkv: Tensor<3>, heads: usize, padding: Vec<usize>) -> Tensor<3> {
    let d = qkv.dims()[2] / 3;
    attend(qkv.clone().narrow(2, 0, d), qkv.narrow(2, d, 2 * d), heads, &padding, true)
}
/// T
pub fn self_attention_with_cache(qkv: Tensor<3>, cache: Tensor<3>, heads: usize, padding: Vec<usize>) -> Tensor<3> {
    let d = qkv.dims()[2] / 3;
    let kv = Tensor::cat(vec![cache, qkv.clone().narrow(2, d, 2 * d)], 1);
    attend(qkv.narrow(2, 0, d), kv, heads, &padding, true)
}
/// T
pub fn cross_attention(q: Tensor<3>, kv: Tensor<3>, heads: usize, padding: Vec<usize>) -> Tensor<3> {
    attend(q, kv, heads, &padding, false)
}
